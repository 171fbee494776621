# ruff: noqa: E501 -- texts of code stay whole
"""What is kept: atomic files, shards, locks, claims, the verdict on a run."""

from __future__ import annotations

from ..mutant import Mutant

FILES, SHARDS, STORE = "rap/scores/files.py", "rap/scores/shards.py", "rap/scores/store.py"
WRITER, LOCK, CLAIMS = "rap/scores/writer.py", "rap/scores/lock.py", "rap/scores/claims.py"
JUDGE, OWNER, MATCH = "rap/scores/judge.py", "rap/scores/owner.py", "rap/scores/match.py"
ONCE = "tests/test_once.py::"
SCORER = "rap/scoring/scorer.py"
FILLING = "rap/scoring/filling.py"

T = "tests/test_store.py::"
C = "tests/test_claims.py::"
DURABLE = (T + "test_a_shard_is_durable_before_it_is_acknowledged",)
NO_SPACE = (T + "test_fault_33_no_space_at_every_write",)
DAMAGED = (
    T + "test_fault_34_damaged_shards_are_set_aside",
    T + "test_fault_34_every_byte_is_guarded",
)
OTHER_RUN = (
    T + "test_fault_36_a_shard_of_another_run_is_set_aside",
    T + "test_fault_36_another_run_is_refused_naming_the_field",
)
ROWS = (
    T + "test_shards_hold_their_own_rows_only",
    T + "test_rows_of_a_shard_in_progress_are_its_own_in_order",
)
LOCKED = (
    T + "test_fault_35_one_writer_in_a_process",
    T + "test_fault_35_the_lock_of_a_killed_process_is_free",
    T + "test_fault_35_a_forked_worker_neither_holds_nor_frees_the_lock",
)
NEWER = (T + "test_fault_37_a_store_of_a_newer_schema",)
CLAIMED = (
    C + "test_a_claim_is_one_process_s",
    C + "test_a_claim_of_a_dead_process_is_taken_at_once",
    C + "test_a_claim_taken_over_in_between_is_put_back",
    C + "test_a_stale_claim_goes_to_one_of_many",
)
SIGNS = (C + "test_signs_of_life", C + "test_fault_39_clocks_that_differ_by_hours")

STORES = (
    # --- files
    Mutant(
        "store-no-fsync",
        FILES,
        "            os.fsync(file.fileno())\n        os.replace(tmp, path)",
        "        os.replace(tmp, path)",
        DURABLE,
    ),
    Mutant(
        "store-no-fsync-of-the-folder",
        FILES,
        "        fsync_folder(path.parent)\n    except BaseException",
        "    except BaseException",
        DURABLE,
    ),
    Mutant(
        "store-not-flushed",
        FILES,
        "            file.flush()\n",
        "",
        (
            "tests/test_files.py::test_fault_31_all_of_a_file_is_synced_before_it_gets_its_name",
        ),
    ),
    Mutant(
        "store-written-in-place",
        FILES,
        "tmp = path.with_name(tmp_name(path.name))",
        "tmp = path",
        (*NO_SPACE, *DURABLE),
    ),
    Mutant(
        "store-tmp-stays",
        FILES,
        "            tmp.unlink()\n",
        "            pass\n",
        (*NO_SPACE, T + "test_fault_32_an_interrupt_leaves_no_tmp"),
    ),
    Mutant(
        "store-interrupt-leaves-tmp",
        FILES,
        "    except BaseException as error:  # KeyboardInterrupt too must leave no tmp behind",
        "    except Exception as error:",
        (T + "test_fault_32_an_interrupt_leaves_no_tmp",),
    ),
    Mutant(
        "store-plain-os-error",
        FILES,
        '        if isinstance(error, OSError):\n            raise store_error(f"{path}: cannot be written", error) from error\n',
        "",
        NO_SPACE,
    ),
    Mutant("store-errno-lost", FILES, "    wrapped.errno = error.errno\n", "", NO_SPACE),
    Mutant(
        "store-no-page-checksums",
        FILES,
        "write_page_checksum=True",
        "write_page_checksum=False",
        (T + "test_page_checksums_are_on",),
    ),
    Mutant(
        "store-digest-not-compared",
        FILES,
        "if check.hexdigest().encode() != digest:",
        "if len(digest) != 64:",
        DAMAGED,
    ),
    Mutant(
        "store-digest-of-the-head",
        FILES,
        "    while piece := file.read(_PIECE):\n        check.update(piece)\n",
        "",
        DAMAGED,
    ),
    Mutant(
        "store-newer-schema-read",
        FILES,
        "if isinstance(version, int) and 1 <= version <= SCHEMA_VERSION:",
        "if isinstance(version, int) and 1 <= version:",
        NEWER,
    ),
    Mutant(
        "store-schema-0-read",
        FILES,
        "if isinstance(version, int) and 1 <= version <= SCHEMA_VERSION:",
        "if isinstance(version, int) and version <= SCHEMA_VERSION:",
        (*NEWER, T + "test_fault_37_a_store_of_no_schema"),
    ),
    # --- shards
    Mutant(
        "store-range-one-more",
        SHARDS,
        "return range(start, min(start + self.shard_size, self.n_samples))",
        "return range(start, start + self.shard_size)",
        (T + "test_what_is_written_is_read", *ROWS),
    ),
    Mutant(
        "store-shards-rounded-down",
        SHARDS,
        "return -(-self.n_samples // self.shard_size)",
        "return max(1, self.n_samples // self.shard_size)",
        (T + "test_what_is_written_is_read", *ROWS),
    ),
    Mutant(
        "store-shard-of-another-number",
        SHARDS,
        'if note.get("kind") != kind or note.get("shard") != k:',
        'if note.get("kind") != kind:',
        DAMAGED + OTHER_RUN,
    ),
    Mutant(
        "store-shard-of-another-run",
        SHARDS,
        '        if other:\n            raise RapStoreError(f"{path}: is of another run ({other[0]})")\n',
        "",
        OTHER_RUN,
    ),
    Mutant(
        "store-other-rollouts",
        SHARDS,
        "        if digest != wanted:\n",
        "        if False:\n",
        (
            "tests/test_files.py::test_rollouts_of_another_generation_are_not_taken_for_these",
            T + "test_fault_34_rollouts_lost_are_made_again",
        ),
    ),
    Mutant(
        "store-partial-in-any-order",
        SHARDS,
        "ascending = all(a < b for a, b in zip(index, index[1:], strict=False))",
        "ascending = True",
        ROWS,
    ),
    Mutant(
        "store-partial-of-other-rows",
        SHARDS,
        "return ascending and all(i in wanted for i in index)",
        "return ascending",
        ROWS,
    ),
    Mutant(
        "store-unfinished-is-read",
        SHARDS,
        '        if missing:\n            raise RapStoreError(\n                f"{self.path}: {len(missing)} of',
        '        if False:\n            raise RapStoreError(\n                f"{self.path}: {len(missing)} of',
        (T + "test_an_unfinished_store_says_so",),
    ),
    Mutant(
        "store-header-sizes",
        SHARDS,
        "ok = all(isinstance(header.get(n), int) and header[n] >= 1 for n in names)",
        "ok = True",
        (T + "test_a_header_that_makes_no_sense_is_damage",),
    ),
    Mutant(
        "store-rows-not-checked",
        WRITER,
        'if scores["index"].to_pylist() != list(wanted):',
        "if scores.num_rows != len(wanted):",
        ROWS,
    ),
    Mutant(
        "store-rollouts-of-others",
        WRITER,
        'if not set(rollouts["index"].unique().to_pylist()) <= set(wanted):',
        "if False:",
        ROWS,
    ),
    Mutant(
        "store-scores-before-rollouts",
        WRITER,
        'note |= {"kind": "score shard", "rollouts": digest, "tally": dict(tally or {})}',
        'note |= {"kind": "score shard", "rollouts": None, "tally": dict(tally or {})}',
        (T + "test_what_is_written_is_read",),
    ),
    Mutant(
        "store-partial-stays",
        WRITER,
        "        self._remove(self._partial(k))\n        self._remove(old(self._scores(k)))\n        self._took",
        "        self._remove(old(self._scores(k)))\n        self._took",
        (T + "test_a_shard_in_progress_is_kept_and_goes_when_it_is_whole",),
    ),
    Mutant(
        "store-corrupt-overwritten",
        WRITER,
        "while os.path.lexists(target):",
        "while False:",
        (T + "test_fault_34_a_second_damage_of_one_shard",),
    ),
    Mutant(
        "store-partial-rollouts-unsorted",
        WRITER,
        "if (np.diff(of) < 0).any() or ends[0] != 0 or ends[-1] != len(of):",
        "if ends[0] != 0 or ends[-1] != len(of):",
        ROWS + (T + "test_rollouts_of_a_shard_in_progress_are_in_the_order_of_its_rows",),
    ),
    Mutant(
        "store-beyond-the-end-stays",
        STORE,
        "if match and int(match[2]) >= self.n_shards:",
        "if match and int(match[2]) > self.n_shards:",
        (T + "test_fault_34_a_shard_beyond_the_end",),
    ),
    Mutant(
        "store-tmps-stay",
        STORE,
        "                (self.path / name).unlink(missing_ok=True)\n",
        "                pass\n",
        (T + "test_fault_33_leftover_tmp_files_go_at_the_next_start",),
    ),
    Mutant(
        "store-settings-not-compared",
        STORE,
        "        if not lines:\n            return False\n        if reuse",
        "        if True:\n            return False\n        if reuse",
        OTHER_RUN,
    ),
    Mutant(
        "store-write-without-lock",
        STORE,
        "if self._lock is None or self._lock.pid != os.getpid():",
        "if False:",
        LOCKED,
    ),
    Mutant(
        "store-lost-rollouts-accepted",
        STORE,
        "            return Shard(table, digest, tally, Drawn.of(drawn))\n        except OtherVersionError:\n            raise\n        except RapStoreError as error:",
        "            return Shard(table, digest, tally, Drawn.of(drawn))\n        except OtherVersionError:\n            raise\n        except RapStoreError as error:\n            return Shard(table, digest, tally, Drawn())",
        (T + "test_fault_34_rollouts_lost_are_made_again",),
    ),
    Mutant(
        "store-redo-forgets-nothing",
        STORE,
        "        self._done.pop(k, None)\n        self._remove(self._partial(k))",
        "        self._remove(self._partial(k))",
        (T + "test_a_shard_to_be_scored_again_is_missing_and_its_file_stays",),
    ),
    # --- one writer
    Mutant(
        "store-lock-shared",
        LOCK,
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        (
            T + "test_fault_31_kill_9_twenty_times",
            *LOCKED,
            "tests/test_store.py::test_fault_35_two_processes_cannot_hold_the_lock",
        ),
    ),
    Mutant(
        "store-lock-open-here",
        LOCK,
        "        if self.key in _open_here:\n",
        "        if False:\n",
        LOCKED,
    ),
    Mutant(
        "store-lock-freed-by-child",
        LOCK,
        "if self.pid != os.getpid():  # a forked child holds nothing",
        "if False:",
        LOCKED,
    ),
    Mutant(
        "store-no-locks-is-fine",
        LOCK,
        "if not required and error.errno in _NO_LOCKS:",
        "if error.errno in _NO_LOCKS:",
        (T + "test_fault_38_no_locks_here",),
    ),
    # --- claims
    Mutant(
        "claim-not-exclusive",
        CLAIMS,
        "os.O_RDWR | os.O_CREAT | os.O_EXCL |",
        "os.O_RDWR | os.O_CREAT |",
        CLAIMED,
    ),
    Mutant(
        "claim-the-living-robbed",
        CLAIMS,
        "        if not self.is_stale(name):\n            return False\n",
        "",
        CLAIMED,
    ),
    Mutant(
        "claim-not-put-back",
        CLAIMS,
        "                os.link(grave, self.folder / name)\n",
        "                pass\n",
        CLAIMED,
    ),
    Mutant(
        "claim-lease-ignored",
        CLAIMS,
        "return now - self._seen[name][1] >= lease",
        "return False",
        SIGNS,
    ),
    Mutant(
        "claim-lease-at-once",
        CLAIMS,
        "return now - self._seen[name][1] >= lease",
        "return True",
        SIGNS,
    ),
    Mutant(
        "claim-signs-not-seen",
        CLAIMS,
        "if name not in self._seen or self._seen[name][0] != text:",
        "if name not in self._seen:",
        SIGNS,
    ),
    Mutant(
        "claim-taken-over-still-held",
        CLAIMS,
        "return claim is not None and claim.token == self._mine.token",
        "return claim is not None",
        (C + "test_a_slow_worker_writes_nothing_of_what_was_taken_over", *CLAIMED),
    ),
    Mutant(
        "claim-released-by-child",
        CLAIMS,
        "if name not in self._held or self._mine.owner.pid != os.getpid():",
        "if name not in self._held:",
        (C + "test_a_forked_child_holds_nothing",),
    ),
    Mutant(
        "owner-number-used-again",
        OWNER,
        "return None if started == _HIDDEN else started == owner.started",
        "return started is not None",
        (C + "test_a_process_number_used_again_is_another_process",),
    ),
    Mutant(
        "owner-zombie-lives",
        OWNER,
        'return None if fields[0] in "ZX" else int(fields[19])',
        "return int(fields[19])",
        (C + "test_a_claim_of_a_dead_process_is_taken_at_once",),
    ),
    Mutant(
        "owner-tmp-of-the-living",
        OWNER,
        "if match is None or (here and _started(int(match[2])) is None):",
        "if match is None or here:",
        (C + "test_fault_33_only_stale_temporary_files_go",),
    ),
    Mutant(
        "owner-tmp-of-others",
        OWNER,
        "old = now - (folder / name).stat().st_mtime >= age",
        "old = True",
        (C + "test_fault_33_only_stale_temporary_files_go",),
    ),
    # --- the verdict
    Mutant(
        "judge-one-bad-stops",
        JUDGE,
        "allowed_bad = max(1, math.floor(",
        "allowed_bad = max(0, math.floor(",
        ("tests/test_judge.py",),
    ),
    Mutant(
        "judge-at-the-limit",
        JUDGE,
        "if bad <= allowed_bad and not (final and bad == n):",
        "if bad < allowed_bad and not (final and bad == n):",
        ("tests/test_judge.py",),
    ),
    Mutant(
        "judge-all-bad-is-fine",
        JUDGE,
        "if bad <= allowed_bad and not (final and bad == n):",
        "if bad <= allowed_bad:",
        ("tests/test_judge.py",),
    ),
    Mutant(
        "judge-too-early",
        JUDGE,
        "if not final and self.seen < min(MIN_SEEN, n):",
        "if False:",
        ("tests/test_judge.py",),
    ),
    Mutant(
        "judge-faint",
        JUDGE,
        "        if median < FAINT:\n",
        "        if False:\n",
        ("tests/test_judge.py",),
    ),
    Mutant(
        "judge-half-degenerate",
        JUDGE,
        "if 2 * degenerate >= groups:",
        "if 2 * degenerate > groups:",
        ("tests/test_judge.py",),
    ),
    Mutant(
        "judge-whose-fault",
        JUDGE,
        "error: type[RapError] = RapModelError if 2 * model > bad else RapInputError",
        "error: type[RapError] = RapModelError if model else RapInputError",
        ("tests/test_judge.py",),
    ),
    # --- which sample is which
    Mutant(
        "match-changed-text",
        MATCH,
        "            if sample_sha256(item, self.images) != self.sample:\n                return changed\n",
        "            pass\n",
        ("tests/test_identity.py",),
    ),
    Mutant(
        "match-changed-image",
        MATCH,
        "            if hashlib.sha256(data).hexdigest() != want:\n",
        "            if False:\n",
        (
            "tests/test_identity.py",
            "tests/test_export.py::test_a_sample_that_changed_since_it_was_scored_is_refused",
        ),
    ),
    Mutant(
        "match-by-place",
        MATCH,
        '        at = at[pc.equal(known, taken(wanted["id"], at)).to_numpy()]\n',
        "",
        (
            "tests/test_identity.py::test_ids_say_which_sample_it_is_even_where_the_data_set_is_the_same",
        ),
    ),
    # --- filling
    Mutant(
        "fill-partial-rows-twice",
        FILLING,
        "rest = (i for i in shards.shard_range(k) if i not in part.done)",
        "rest = iter(shards.shard_range(k))",
        (
            "tests/test_scoring_stores.py::test_fault_32_interrupt_loses_at_most_the_current_batch",
        ),
    ),
    Mutant(
        "fill-partial-not-kept",
        FILLING,
        "        except BaseException as error:\n            if parts:\n                self._keep_after(shards, parts[0], error)\n            raise\n",
        "        except BaseException:\n            raise\n",
        (
            "tests/test_scoring_stores.py::test_fault_32_interrupt_loses_at_most_the_current_batch",
        ),
    ),
    # --- what the cascade asks at once, and what is kept for it
    Mutant(
        "ask-longest",
        "rap/scoring/jobs.py",
        "self.longest = max(self.longest, image)",
        "self.longest = image",
        ("tests/test_once.py::test_prompts_are_padded_to_the_longest_of_each_arm",),
    ),
    Mutant(
        "ask-twice-the-room",
        SCORER,
        "batch.padded_tokens >= 2 * self._room",
        "batch.padded_tokens >= self._room",
        (f"{ONCE}test_a_group_of_the_cascade_is_twice_what_memory_holds",),
    ),
    Mutant(
        "ask-fit",
        SCORER,
        "return few or not self._room or whole.padded_tokens <= self._room",
        "return True",
        (f"{ONCE}test_prompts_of_samples_that_are_not_asked_are_let_go_of",),
    ),
    Mutant(
        "ask-lets-go",
        "rap/scoring/evidence/cascade.py",
        "scorer.hold(waiting, [job for job in part if id(job) not in chosen])",
        "scorer.hold(waiting, [])",
        (f"{ONCE}test_prompts_of_samples_that_are_not_asked_are_let_go_of",),
    ),
    Mutant(
        "ask-kept-row",
        "rap/model/decode.py",
        "place |= {(key, row): len(place) + n for n, row in enumerate(mine)}",
        "place |= {(key, row): n for n, row in enumerate(mine)}",
        (f"{ONCE}test_prompts_of_several_batches_are_kept_in_one_without_the_others",),
    ),
    Mutant(
        "ask-room-of-the-weights",
        "rap/model/kept.py",
        "max(0, total - weights) * DEVICE_SHARE",
        "total * DEVICE_SHARE",
        (f"{ONCE}test_what_is_kept_of_a_device_depends_on_its_memory_and_the_weights",),
    ),
)
