# make audit   installs what is needed and runs the default audit into results/occupations
# make test    the same for the tests
# make test-kernels   what hangs on kernels, under three sets of them, with one thread and with two
# make test-peers     what needs other libraries, in an environment of their own, .venv-peers
# make lint    the same for style, types and import layers
# make experiments   every experiment and benchmark, small
# make docs    the site: how-to pages and the reference of every module, in site/
# make notebooks   runs the notebooks, each within five minutes
# make chaos   random disasters on a store, 200 trials
# make fuzz    some thousand hostile manifests, pictures, weights and texts
# make licences  what users install, under which licence, and whether a version has a known vulnerability
#
# Another Python:  make test PYTHON=python3.12      Start over:  make clean

PYTHON ?= python3
READY := .venv/.ready
PIP := .venv/bin/python -m pip --disable-pip-version-check
# One build of torch and torchvision shows when both are imported; the others stand for a whole installation.
WORKS := .venv/bin/python -W ignore -c 'import torch, torchvision, timm, mypy, pytest, probing'

PEERS := .venv-peers/.ready

.PHONY: audit test test-kernels test-peers lint docs experiments notebooks chaos fuzz licences clean
.DELETE_ON_ERROR:

# The stamp is written last and holds this folder's path: a broken first try, a .venv whose Python has gone and a
# checkout that was moved are all installed again.
$(shell .venv/bin/python -c '' 2>/dev/null && [ "$$(cat $(READY) 2>/dev/null)" = "$$PWD" ] || rm -f $(READY))

audit: $(READY)
	.venv/bin/probing audit experiments/audits/occupations.yaml --out results/occupations

# In CI every call's arguments are compared with their annotations, tensors' shapes too, which takes half as long again.
CHECKED := $(if $(CI),--jaxtyping-packages=probing,concepts,beartype.beartype)

test: $(READY)
	.venv/bin/python -m pytest -n 2 --dist loadfile $(CHECKED)

test-kernels: $(READY)
	for threads in 1 2; do \
	  for kernels in "" "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2" \
	    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41"; do \
	    echo "$$kernels THREADS=$$threads"; \
	    env $$kernels THREADS=$$threads .venv/bin/python -m pytest -n 2 --dist loadfile -q -m kernels || exit 1; \
	  done; \
	done

test-peers: $(PEERS)
	.venv-peers/bin/python -m pytest tests/probing/evaluation/test_quantus.py tests/probing/maximization/test_lucent.py
	.venv-peers/bin/python experiments/tiny.py benchmarks/evaluation benchmarks/maximization

lint: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy --strict
	.venv/bin/lint-imports

experiments: $(READY)
	.venv/bin/python experiments/tiny.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

notebooks: $(READY)
	.venv/bin/python -m pytest --nbmake --nbmake-timeout=300 -W default -o addopts= experiments/notebooks

chaos: $(READY)
	.venv/bin/python tests/chaos.py --trials 200

fuzz: $(READY)
	FUZZ=8 .venv/bin/python -m pytest -q tests/hostile/test_fuzz.py

licences: $(READY)
	.venv/bin/python tests/licences.py

$(READY): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing this checkout and what it needs into .venv: the first time several GB and some minutes."
	@$(PIP) --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	$(PIP) install --editable '.[demo,dev]'
	@$(WORKS) 2>/dev/null || { \
	  echo "The installation does not work: building .venv anew." && \
	  "$(PYTHON)" -m venv --clear .venv && $(PIP) install --editable '.[demo,dev]'; }
	@$(WORKS) || { echo "Not usable. If torchvision does not import, it is of another build than torch; mend it by:" \
	  "$(PIP) install --force-reinstall torch torchvision" >&2; exit 1; }
	@pwd > $@

# Lucent wants a kornia of 2020, so it gets an environment of its own, which finds all else in .venv.
$(PEERS): $(READY)
	"$(PYTHON)" -m venv --clear .venv-peers
	.venv-peers/bin/python -c 'import sys, sysconfig; print(f"import site; site.addsitedir({sys.argv[1]!r})", \
	  file=open(sysconfig.get_path("purelib") + "/suite.pth", "w"))' \
	  "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	.venv-peers/bin/python -m pip --disable-pip-version-check install --editable '.[lucent,peers]'
	.venv-peers/bin/python -m pip --disable-pip-version-check uninstall --yes opencv-python
	.venv-peers/bin/python -m pip --disable-pip-version-check install opencv-python-headless # needs no libGL
	.venv-peers/bin/python -W ignore -c 'import lucent.optvis.render, quantus'
	@touch $@

clean:
	rm -rf .venv .venv-peers results site
