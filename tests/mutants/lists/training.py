# ruff: noqa: E501 -- texts of code stay whole
"""Grading, reward logs, re-selection, exports."""

from __future__ import annotations

from ..mutant import Mutant

GRADING, FINAL, EQUAL, CHOSEN, NUMBERS, LETTERS = (
    f"rap/rewards/{n}.py"
    for n in ("grading", "final", "equal", "chosen", "numbers", "letters")
)
WORDS = "rap/rewards/words.py"
UNITS, EXPORTED = "rap/rewards/units.py", "rap/rewards/exported.py"
LOG, FILE, AGAIN = (
    "rap/trl/rewardlog.py",
    "rap/trl/rewardfile.py",
    "rap/selection/reselection.py",
)
FILTER, FOLDER, WRITE, ROWS = (
    f"rap/export/{n}.py" for n in ("filter", "folder", "write", "rows")
)

R = "tests/test_rewards.py::"
CHOICES = (R + "test_named_choice",)
OPEN = (R + "test_open_answers",)
LAST = (R + "test_final_answer",)
FORMS = ("tests/test_answers.py::test_the_table_of_forms",)
ALONE = ("tests/test_answers.py::test_what_one_rule_alone_decides",)
QUANTITY = (R + "test_quantity",)
A = "tests/test_reselection.py::"
COUNTS = (
    A + "test_old_visits_decay_and_unjudged_ones_are_nothing",
    A + "test_impossible_counts_are_refused_by_name",
)
E = "tests/test_export.py::"
V = "tests/test_export_rows.py::"
VISITS = ("tests/test_rewardfile.py",)

TRAINING = (
    # --- grading
    Mutant(
        "grade-missing-word",
        WORDS,
        "denied(said, at, end) or missing(said, at) or",
        "denied(said, at, end) or",
        FORMS,
    ),
    Mutant(
        "grade-asked-word",
        WORDS,
        "return not asked(sentence, said[end:]) and",
        "return",
        FORMS,
    ),
    Mutant(
        "grade-listed-word",
        WORDS,
        "    if one_of_list(before, after):\n        return False\n",
        "",
        FORMS,
    ),
    Mutant(
        "grade-missing-choice", CHOSEN, "        and not missing(final, a)\n", "", FORMS
    ),
    Mutant("grade-second-guess", GRADING, " or offers_another(rest)", "", FORMS),
    Mutant("grade-denied-claims", GRADING, "        response = kept\n", "", FORMS),
    Mutant(
        "grade-first-answer",
        FINAL,
        "inside, boxed = _boxed(inside) or inside, _boxed(text)",
        "inside, boxed = inside, _boxed(text)",
        LAST + OPEN,
    ),
    Mutant(
        "grade-hash-first",
        FINAL,
        'hashes = _first_line(text.rpartition("####")[2]) if "####" in text else ""',
        'hashes = _first_line(text.partition("####")[2]) if "####" in text else ""',
        (R + "test_of_several_hashes_the_last_count",),
    ),
    Mutant(
        "grade-first-line",
        FINAL,
        'return (lines[-1] if lines else ""), False',
        'return (lines[0] if lines else ""), False',
        LAST,
    ),
    Mutant(
        "grade-goodbye-counts",
        FINAL,
        "while len(lines) > 1 and _GOODBYE.search(lines[-1]):",
        "while False:",
        LAST + OPEN,
    ),
    Mutant(
        "grade-cue-first",
        FINAL,
        "for match in list(_CUE.finditer(text))[: -1 - CUES : -1]:",
        "for match in list(_CUE.finditer(text))[:CUES]:",
        LAST + OPEN,
    ),
    Mutant(
        "grade-not-is-an-answer",
        FINAL,
        'if line and not re.match(r"not\\b|n\'t|不", line, re.IGNORECASE):',
        "if line:",
        LAST + CHOICES + OPEN,
    ),
    Mutant(
        "grade-denied-letter",
        CHOSEN,
        "named = {letter_index(m[1], n) for m in found if not denied(final, m.start(), m.end())}",
        "named = {letter_index(m[1], n) for m in found}",
        ALONE,
    ),
    Mutant(
        "grade-first-of-several",
        CHOSEN,
        "return found.pop() if len(found) == 1 else None",
        "return min(found) if found else None",
        CHOICES,
    ),
    Mutant(
        "grade-letter-against-text",
        CHOSEN,
        '                return None  # "(A), (B) and (C)", "B. 14 cm" where 14 cm is C\n',
        "                pass\n",
        CHOICES,
    ),
    Mutant(
        "grade-text-inside-longer",
        CHOSEN,
        "if not any(c <= a and b <= d and d - c > b - a for c, d, _ in spans)",
        "if True",
        ALONE,
    ),
    Mutant(
        "grade-text-inside-word",
        CHOSEN,
        "if not (longer or _joins(before[::-1], words[0]) or _joins(after, words[-1])):",
        "if True:",
        CHOICES,
    ),
    Mutant(
        "grade-cut-is-finished",
        CHOSEN,
        "if any(marked) or not lines or not finished:",
        "if any(marked) or not lines:",
        (
            R + "test_builtin_checks",
            R + "test_cut_off_responses_count_only_what_they_marked",
        ),
    ),
    Mutant(
        "grade-cut-open-answer",
        GRADING,
        "elif finished and _unmarked(reference, accepted, text):",
        "elif _unmarked(reference, accepted, text):",
        (
            R + "test_builtin_checks",
            R + "test_cut_off_responses_count_only_what_they_marked",
        ),
    ),
    Mutant(
        "grade-one-value-is-enough",
        GRADING,
        "    if len(given) != len(accepted.values):\n        return False\n",
        "",
        ALONE,
    ),
    Mutant("grade-value-twice", GRADING, "        left.remove(found)\n", "", ALONE),
    Mutant(
        "grade-order-of-pairs",
        GRADING,
        "if accepted.ordered or named:",
        "if named:",
        ALONE,
    ),
    Mutant(
        "grade-units-of-formulas",
        EQUAL,
        "        if unit and other and unit != other:\n            continue\n",
        "",
        ALONE,
    ),
    Mutant(
        "grade-hedged-letters",
        LETTERS,
        'return found.pop() if len(found) == 1 and not hedged else ""',
        'return found.pop() if found else ""',
        OPEN + CHOICES,
    ),
    Mutant(
        "grade-letters-denied",
        LETTERS,
        '            if denied(text, match.start(1), match.end(1)):\n                return ""\n',
        "",
        ALONE,
    ),
    Mutant(
        "grade-letters-in-order",
        LETTERS,
        '            return "".join(sorted(letters))\n    return letters_of',
        '            return "".join(letters)\n    return letters_of',
        ALONE,
    ),
    # --- numbers
    Mutant(
        "number-integers-loose",
        NUMBERS,
        "if exact or a.denominator == 1 or abs(a - b) > RELATIVE * abs(a):",
        "if abs(a - b) > RELATIVE * abs(a):",
        ALONE,
    ),
    Mutant(
        "number-absolute-tolerance",
        NUMBERS,
        "abs(a - b) > RELATIVE * abs(a):",
        "abs(a - b) > RELATIVE:",
        ALONE,
    ),
    Mutant(
        "number-rounded-decimals",
        NUMBERS,
        "return digits < other and fine.quantize(coarse) == coarse",
        "return True",
        ALONE,
    ),
    Mutant(
        "number-thousands",
        NUMBERS,
        'text = text.replace(".", "") if text.count(".") > 1 else text',
        "",
        ALONE,
    ),
    Mutant(
        "number-sign",
        NUMBERS,
        'sign, text = (-1 if text[0] == "-" else 1), text[match.end() :]',
        "sign, text = 1, text[match.end() :]",
        QUANTITY + OPEN,
    ),
    Mutant(
        "number-scale",
        NUMBERS,
        "value *= _SCALES[(scale[1] or scale[2]).casefold()]",
        "value *= 1",
        ALONE,
    ),
    Mutant(
        "number-decades",
        NUMBERS,
        "found = None if _DECADE.match(text) else _number_at(text)",
        "found = _number_at(text)",
        ALONE,
    ),
    Mutant(
        "number-percent",
        NUMBERS,
        "return exact or same_number(reference[0], value[0])\n    temperature",
        "return same_number(reference[0], value[0])\n    temperature",
        ALONE,
    ),
    Mutant(
        "number-units-ignored",
        NUMBERS,
        "    if dimension != kind:\n        return False\n",
        "",
        ALONE,
    ),
    Mutant(
        "number-units-not-converted",
        NUMBERS,
        "return Fraction(reference[0]) * factor == Fraction(value[0]) * by",
        "return Fraction(reference[0]) == Fraction(value[0])",
        QUANTITY + OPEN,
    ),
    Mutant(
        "number-mixed",
        NUMBERS,
        "return (whole[0] if whole else 0) + above / below",
        "return above / below",
        ALONE,
    ),
    Mutant(
        "number-exponent",
        NUMBERS,
        "return sign * Fraction(int(text)) * Fraction(10) ** exponent",
        "return sign * Fraction(int(text))",
        ALONE,
    ),
    Mutant(
        "number-hundred-words",
        NUMBERS,
        "current = max(current, 1) * 100",
        "current = current + 100",
        ALONE,
    ),
    Mutant(
        "number-prefix-case",
        UNITS,
        "    if name in _SI:\n        return _SI[name]\n",
        "",
        ALONE,
    ),
    Mutant(
        "number-square",
        UNITS,
        'return f"{dimension}{power}", factor**power',
        'return f"{dimension}{power}", factor',
        ALONE,
    ),
    # --- the training reward
    Mutant(
        "reward-unfinished-counts",
        EXPORTED,
        "_checker().check(sample, text, finished=finished)",
        "_checker().check(sample, text, finished=True)",
        ("tests/test_exported_rewards.py",),
    ),
    Mutant(
        "reward-choices-lost",
        EXPORTED,
        'sample = Sample(0, "", "", answer, options, (), None, {})',
        'sample = Sample(0, "", "", answer, (), (), None, {})',
        ("tests/test_exported_rewards.py",),
    ),
    # --- the log
    Mutant(
        "log-half-fails",
        LOG,
        "passed=sum(r >= ACCEPTED for r in finite),",
        "passed=sum(r > ACCEPTED for r in finite),",
        (
            "tests/test_rewardfile.py",
            "tests/test_trl_log.py::test_outcomes_count_none_and_nan_as_neither",
        ),
    ),
    Mutant("log-nan-is-wrong", LOG, "judged=len(finite),", "judged=len(rewards),", VISITS),
    Mutant(
        "log-restart-keeps",
        LOG,
        'found = {key: o for key, o in found.items() if key[0] < line["step"]}',
        'found = {key: o for key, o in found.items() if key[0] <= line["step"]}',
        VISITS,
    ),
    Mutant(
        "log-processes-overwrite",
        LOG,
        "found[key] = found.get(key, Outcome()) + Outcome(*values)",
        "found[key] = Outcome(*values)",
        (
            "tests/test_trl_log.py::test_log_sums_processes_and_keeps_the_order",
            *VISITS,
        ),
    ),
    Mutant(
        "log-torn-line-continued",
        LOG,
        '                    data = b"\\n" + data  # a torn line is closed, not continued\n',
        "                    pass\n",
        ("tests/test_trl_log.py::test_log_torn_line_is_passed_over_and_closed", *VISITS),
    ),
    Mutant(
        "log-partial-write",
        LOG,
        '                if os.write(handle, data) != len(data):\n                    raise OSError("only a part was written")\n',
        "                os.write(handle, data)\n",
        ("tests/test_rewardfile.py::test_a_line_that_is_half_written_is_an_error",),
    ),
    Mutant(
        "log-any-lengths",
        LOG,
        "and len({len(values) for values in lists}) == 1",
        "and True",
        (
            "tests/test_rewardfile.py::test_a_line_whose_lists_have_other_lengths_is_passed_over",
        ),
    ),
    Mutant(
        "log-steps-as-written",
        FILE,
        "    for step in sorted(by_step):",
        "    for step in by_step:",
        VISITS,
    ),
    Mutant(
        "log-own-unsorted",
        FILE,
        'read_rewards(path).sort_by("step")',
        "read_rewards(path)",
        (
            "tests/test_rewardfile.py::test_steps_of_this_projects_own_log_are_visits_the_oldest_first",
        ),
    ),
    # --- re-selection
    Mutant(
        "again-decay-turned",
        AGAIN,
        "counts[name] = (decay * before[0] + passed, decay * before[1] + judged)",
        "counts[name] = (before[0] + decay * passed, before[1] + decay * judged)",
        COUNTS,
    ),
    Mutant(
        "again-empty-visit-ages",
        AGAIN,
        "        if judged == 0:\n            continue\n",
        "",
        COUNTS,
    ),
    Mutant(
        "again-impossible-count",
        AGAIN,
        "if not (math.isfinite(judged) and 0 <= passed <= judged):",
        "if not math.isfinite(judged):",
        COUNTS,
    ),
    Mutant(
        "again-too-few-tell",
        AGAIN,
        "told = tried >= config.enough",
        "told = tried > 0",
        (A + "test_too_few_completions_say_nothing",),
    ),
    Mutant(
        "again-enough-itself",
        AGAIN,
        "told = tried >= config.enough",
        "told = tried > config.enough",
        (A + "test_the_limits_themselves_count",),
    ),
    Mutant(
        "again-trivial-itself",
        AGAIN,
        "trivial = told & (difficulty <= config.trivial)",
        "trivial = told & (difficulty < config.trivial)",
        (A + "test_the_limits_themselves_count",),
    ),
    Mutant(
        "again-unsolved-itself",
        AGAIN,
        "unsolved = told & (difficulty >= config.unsolved)",
        "unsolved = told & (difficulty > config.unsolved)",
        (A + "test_the_limits_themselves_count",),
    ),
    Mutant(
        "again-first-forgotten",
        AGAIN,
        'return mask_of(selection.table["first"]) if there else selection.kept',
        "return selection.kept",
        (A + "test_the_first_selection_is_remembered_over_phases",),
    ),
    Mutant(
        "again-share-rounded-up",
        AGAIN,
        "share = min(math.floor(config.keep * first.sum() + 1e-9), size)",
        "share = min(math.ceil(config.keep * first.sum()), size)",
        (A + "test_a_share_that_is_a_decimal_is_one",),
    ),
    Mutant(
        "again-tenths",
        AGAIN,
        "math.floor(config.keep * first.sum() + 1e-9)",
        "math.floor(config.keep * first.sum())",
        (A + "test_a_share_that_is_a_decimal_is_one",),
    ),
    Mutant(
        "again-teaching-last",
        AGAIN,
        'admit(best(np.flatnonzero(first), share, out), "stays_first")',
        'admit(best(np.flatnonzero(first), share), "stays_first")',
        (A + "test_a_share_of_the_first_selection_stays_whatever_happens",),
    ),
    Mutant(
        "again-out-stays",
        AGAIN,
        'admit(best(np.flatnonzero(before & ~out & ~active), left), "stays")',
        'admit(best(np.flatnonzero(before & ~active), left), "stays")',
        (
            A + "test_what_became_trivial_leaves_and_the_hardest_come_in",
            A + "test_what_is_never_solved_in_training_leaves",
        ),
    ),
    Mutant(
        "again-barred-comes",
        AGAIN,
        "open_rows(judged) & ~active & ~before & ~out",
        "~active & ~before & ~out",
        (A + "test_barred_and_quarantined_samples_never_come_in",),
    ),
    Mutant(
        "again-scored-trivial-comes",
        AGAIN,
        "(told | (scored > 0) & (scored < 1))",
        "(told | (scored >= 0) & (scored < 1))",
        (A + "test_what_new_scores_find_trivial_does_not_come_in",),
    ),
    Mutant(
        "again-weak-first",
        AGAIN,
        "order = np.lexsort((rows, -strength[rows], *(key[rows] for key in keys)))",
        "order = np.lexsort((rows, strength[rows], *(key[rows] for key in keys)))",
        (A + "test_size_grows_and_shrinks",),
    ),
    Mutant(
        "again-other-samples",
        AGAIN,
        "if rows.null_count or len(rows) != now.table.num_rows:",
        "if rows.null_count:",
        (A + "test_new_scores_of_other_samples_are_refused",),
    ),
    Mutant(
        "again-unknown-id",
        AGAIN,
        "    if rows.null_count:\n        unknown",
        "    if False:\n        unknown",
        (A + "test_an_unknown_id_is_refused_by_name",),
    ),
    Mutant(
        "again-none-left",
        AGAIN,
        "    if not active.any():\n",
        "    if False:\n",
        (A + "test_no_sample_left_is_refused",),
    ),
    # --- exports
    Mutant(
        "export-changed-sample",
        WRITE,
        "if scored is not None and scored != sample_sha256(sample, hashes):",
        "if False:",
        (E + "test_a_sample_that_changed_since_it_was_scored_is_refused",),
    ),
    Mutant(
        "export-too-many-images",
        WRITE,
        "if self.max_images is not None and count > self.max_images:",
        "if self.max_images is not None and count > self.max_images + 1:",
        (E + "test_several_pictures_are_refused_by_name_where_one_is_taken",),
    ),
    Mutant(
        "export-not-upright",
        WRITE,
        "if seen is None or seen.size != scored.size or seen.tobytes() != scored.tobytes():",
        "if seen is None:",
        (E + "test_pictures_are_those_that_were_scored",),
    ),
    Mutant(
        "export-placeholder-in-text",
        WRITE,
        "if any(tag in text for text in texts):",
        "if False:",
        (E + "test_text_that_a_trainer_takes_for_a_film_is_refused",),
    ),
    Mutant(
        "export-pairs-of-wrong-ones",
        WRITE,
        "return {k: (v[True], v[False]) for k, v in found.items() if len(v) == 2}",
        "return {k: (v[False], v[True]) for k, v in found.items() if len(v) == 2}",
        (E + "test_completions_make_dpo_pairs",),
    ),
    Mutant(
        "export-pairs-without-image",
        WRITE,
        '            pc.equal(table["arm"], "image"),\n',
        '            pc.is_valid(table["arm"]),\n',
        (E + "test_completions_make_dpo_pairs",),
    ),
    Mutant(
        "export-scratch-stays",
        WRITE,
        "    finally:\n        shutil.rmtree(writing.folder, ignore_errors=True)\n",
        "    finally:\n        pass\n",
        (E + "test_a_picture_gone_or_damaged_is_refused_and_nothing_is_left",),
    ),
    Mutant(
        "export-replaces-unasked",
        FOLDER,
        "    if there and not overwrite:\n",
        "    if False:\n",
        (E + "test_a_folder_in_use_is_refused",),
    ),
    Mutant(
        "export-replaces-no-export",
        FOLDER,
        "    if there and MANIFEST not in there:\n",
        "    if False:\n",
        (
            E + "test_a_folder_in_use_is_refused",
            E + "test_what_others_put_into_an_export_is_not_deleted",
        ),
    ),
    Mutant(
        "export-deletes-foreign",
        FOLDER,
        "    if foreign:\n",
        "    if False:\n",
        (E + "test_what_others_put_into_an_export_is_not_deleted",),
    ),
    Mutant(
        "export-older-not-moved-back",
        FOLDER,
        '        if kind == "old" and not folder.exists():\n            os.replace(left, folder)\n',
        "        if False:\n            os.replace(left, folder)\n",
        (E + "test_what_a_killed_export_left_is_cleared_up",),
    ),
    Mutant(
        "export-clears-the-living",
        FOLDER,
        "        if not ours or _runs(int(pid)):\n",
        "        if not ours:\n",
        (E + "test_what_a_killed_export_left_is_cleared_up",),
    ),
    Mutant(
        "export-older-lost-on-error",
        FOLDER,
        "        if old.exists():\n            os.replace(old, folder)\n        raise\n",
        "        raise\n",
        (
            E + "test_a_disk_that_refuses_is_a_store_error",
            E + "test_an_older_export_stays_where_the_new_one_cannot_be_put",
        ),
    ),
    Mutant(
        "export-form-not-checked",
        FILTER,
        "    if filter and not own:\n",
        "    if False:\n",
        (
            V + "test_rewriting_can_be_asked_for",
            V + "test_options_of_rewriting_rewrite_and_say_so_when_they_cannot",
            V + "test_a_form_that_is_not_there_cannot_be_kept",
        ),
    ),
    Mutant(
        "export-other-prompt",
        FILTER,
        "if own and filter is None and (apart := prompt_apart(selection)):",
        "if False and (apart := prompt_apart(selection)):",
        ("tests/test_export_rows.py", "tests/test_prompts.py"),
    ),
    Mutant(
        "export-reward-by-index",
        FILTER,
        'if to == "verl" and [str(name) for name in ids] == writing.samples:',
        'if to == "verl":',
        (V + "test_verls_reward_log_goes_along_where_its_index_is_the_id",),
    ),
    Mutant(
        "export-outside",
        ROWS,
        "    if taken or name.split(os.sep)[0] == os.pardir:\n",
        "    if taken:\n",
        (V + "test_a_path_that_leads_above_the_export_is_refused",),
    ),
    Mutant(
        "export-own-files-overwritten",
        ROWS,
        'taken = name in (MANIFEST, "train.jsonl", "train.parquet", "dataset_info.json")',
        "taken = False",
        (V + "test_nothing_outside_of_the_export_is_written",),
    ),
    Mutant(
        "export-put-column-lost",
        ROWS,
        "line = None if one.put else samples.line(one.sample.index)",
        "line = samples.line(one.sample.index)",
        (V + "test_lines_to_parquet_and_parquet_to_lines",),
    ),
)
