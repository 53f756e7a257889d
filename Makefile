# What there is to do; `make` alone lists it. All but `help` set up the environment first.
EXPERIMENT := demo
VENV := .venv
BIN := $(VENV)/bin
TARGET := cpu
INSTALLED := $(VENV)/installed-$(TARGET)
SNAKEMAKE := $(BIN)/snakemake --profile profiles/local
WHAT = experiment=$(EXPERIMENT) seeds=1

.DEFAULT_GOAL := help
.PHONY: help env demo demo-seeds check test test-slurm lint format bench chromium slurm

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

env: $(INSTALLED)  ## set up .venv, with everything pinned, and no more (TARGET=cuda or volta for GPUs)

$(INSTALLED): envs/cpu.txt envs/create.sh
	@sh envs/create.sh $(VENV) $(TARGET)
	@touch $@

demo: env  ## run the demo with one training seed, and its report, offline, in minutes
demo-seeds: env  ## add the other training seeds to the demo (EXPERIMENT=name runs another experiment)
demo-seeds: WHAT = experiment=$(EXPERIMENT)
demo demo-seeds:
	@$(SNAKEMAKE) --config $(WHAT)
	@if [ ! -e report.zip ] || [ "$$(cat report/experiment 2>/dev/null)" != "$(EXPERIMENT)" ] || \
		[ -n "$$(find results/$(EXPERIMENT)/report workflow/report -newer report/experiment -type f)" ]; then \
		$(SNAKEMAKE) --config $(WHAT) --report report.zip && rm -rf report && \
		$(BIN)/python -m zipfile -e report.zip . && echo "$(EXPERIMENT)" >report/experiment; \
	fi
	@echo "Report: open $(CURDIR)/report/report.html in a browser (report.zip holds it all)"

# A file stays on one worker, since its tests share fixtures; in the order of tests/conftest.py.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder
CHANGED = $(shell git diff --name-only --diff-filter=d HEAD && git ls-files --others --exclude-standard)
check: env  ## in a minute: formatters on what differs from the last commit, fast tests, one stage of each kind
	$(if $(filter %.py,$(CHANGED)),@$(BIN)/ruff check $(filter %.py,$(CHANGED)) && $(BIN)/ruff format --check $(filter %.py,$(CHANGED)))
	$(if $(filter %.smk Snakefile,$(CHANGED)),@$(BIN)/snakefmt --check $(filter %.smk Snakefile,$(CHANGED)))
	@$(BIN)/python -m pytest $(IN_TWO) -m "not slow" --ignore tests/slurm

test: env chromium  ## all tests but those that need a Slurm cluster, two at a time
	@$(BIN)/python -m pytest $(IN_TWO) --ignore tests/slurm

test-slurm: env slurm  ## the demo and the faults of docs/faults.md, on a Slurm cluster started for them
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -rs tests/slurm

lint: env  ## formatters, linters, types, and Snakemake's own checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint
	@! git grep -nE '^(<{7}|>{7}) ' # left over from a merge

format: env  ## format all code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

BENCHMARKS := minillm_round trl_step decoding evaluation kd_step loss_memory training_step compile checkpointing verifying starting
TRL := benchmarks/packages/trl-1.16.0 benchmarks/packages/trl-1.14.2

bench: env $(TRL)  ## all benchmarks, their numbers into docs/performance.md: well over an hour on two quiet cores
	@failed=; for name in $(BENCHMARKS); do \
		echo "== $$name"; \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || failed="$$failed $$name"; \
	done; \
	[ -z "$$failed" ] || { echo "These did not end:$$failed" >&2; exit 1; }
	@$(BIN)/python benchmarks/table.py $(BENCHMARKS:%=benchmarks/results/%.json)

benchmarks/packages/trl-1.16.0: benchmarks/requirements.txt
benchmarks/packages/trl-1.14.2: benchmarks/requirements-minillm.txt
$(TRL): | $(INSTALLED)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps --upgrade --target $@ --requirement $<
	@touch $@

# Reports are tested in a real browser. Where none can be installed, those tests are skipped and say so.
chromium:
	@command -v chromium >/dev/null || [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
		echo "chromium could not be installed: the tests that need it are skipped"

# The daemons are started by the tests, below a temporary folder (tests/slurm/cluster.py).
SLURM := slurmctld slurmd slurm-client munge
slurm:
	@for program in slurmctld slurmd sbatch munged; do PATH="$$PATH:/usr/sbin" command -v $$program; done | wc -l | grep -qx 4 || \
		{ [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM) >/dev/null; } || \
		echo "Slurm could not be installed: its tests are skipped. As root: apt-get install $(SLURM)"
