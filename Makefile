# The front door. CMake with Ninja does the building; these are the commands a person types.
#
#   make          build/pith, one executable            make install [PREFIX=/usr/local DESTDIR=]
#   make demo     convert the bundled model and chat     make dist     the self-contained release tarball
#   make test     build and run every test               make asan     the tests under ASan + UBSan
#   make deps     install what building needs            make tsan     what runs threads, under ThreadSanitizer
#   make format   clang-format everything                make check    whether everything is formatted
#   make aarch64  the NEON kernels under qemu, where a cross compiler is
#   make ablation what each lever of the quantizer is worth
#   make bench    a table of CPU speed (random weights of two shapes, 3 GB on disk)
#   make families what is equal to the reference, family by family

BUILD  ?= build
PREFIX ?= /usr/local
JOBS   ?= $(shell nproc)
MODEL   = $(BUILD)/demo-2.85.pith

# Debian 12 names. Catch2 and python3 serve the tests, libeigen3 the quantizer.
PACKAGES = g++ cmake ninja-build pkg-config libfmt-dev nlohmann-json3-dev libcli11-dev libedit-dev \
  libxxhash-dev libpcre2-dev libutf8proc-dev libsentencepiece-dev libeigen3-dev catch2 python3
DIST_PACKAGES = dpkg-dev patch libbsd-dev libmd-dev libncurses-dev binutils
CHECK_PACKAGES = clang-format

export DEBIAN_FRONTEND = noninteractive
SUDO = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Installs the missing ones of $(1); silent and offline when there are none. Elsewhere than on Debian that is the user's.
define install
@command -v dpkg-query >/dev/null || exit 0; missing=""; for p in $(1); do \
  dpkg-query -W -f='$${Status}\n' $$p 2>/dev/null | grep -q '^install ok installed' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then echo "installing:$$missing"; \
  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

.PHONY: ablation all deps test families demo asan tsan aarch64 bench install dist check format check-deps dist-deps clean
all: deps $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target pith

deps:
	$(call install,$(PACKAGES))
check-deps:
	$(call install,$(CHECK_PACKAGES))
dist-deps:
	$(call install,$(DIST_PACKAGES))

$(BUILD)/build.ninja:
	@cmake -S . -B $(BUILD) -G Ninja $(CMAKE_FLAGS) >/dev/null

test: deps $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS)
	@ctest --test-dir $(BUILD) --output-on-failure --timeout 600 -j $(JOBS) $(CTEST_FLAGS)

# Equality with the reference, by family and switch; then the tokenizers and chat templates that the last line counts.
families: deps $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target test_families test_tokenizer test_chat_template >/dev/null
	@$(BUILD)/tests/test_families "[table]" -o /dev/null
	@$(BUILD)/tests/test_tokenizer >/dev/null && $(BUILD)/tests/test_chat_template >/dev/null

$(MODEL): models/demo/model.safetensors | all
	@$(BUILD)/pith convert models/demo -o $@

demo: $(MODEL)
	@if [ -t 0 ]; then $(BUILD)/pith chat $(MODEL); \
	else $(BUILD)/pith chat $(MODEL) --once "What is pith?"; fi

# What each lever of the quantizer is worth, on the demo model: half an hour on two cores. TEXT=FILE for another text.
# The figures as a page: pith inspect FILE --html PAGE --ablation build/ablation.json
ablation: all
	@tests/ablation.py $(BUILD)/pith --work $(BUILD)/ablation --json $(BUILD)/ablation.json $(if $(TEXT),--text $(TEXT))

# Sanitizers find what they find at -O1; -g1 is enough for line numbers, and no sanitizer looks into GPU code. The emulated one takes
# minutes there: a limit is for what hangs.
LIGHT = -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS='-O1 -g1' -DPITH_CUDA=OFF
asan:
	@$(MAKE) --no-print-directory test BUILD=build-asan CMAKE_FLAGS="-DPITH_SANITIZE=ON $(LIGHT)" CTEST_FLAGS="--timeout 1800"
tsan:
	@$(MAKE) --no-print-directory test BUILD=build-tsan CMAKE_FLAGS="-DPITH_TSAN=ON $(LIGHT)" CTEST_FLAGS="-R 'session|^threads'"

aarch64:
	@tests/run_aarch64.sh $(abspath $(BUILD))/aarch64

BENCH = $(BUILD)/tinyllama-1.1b.pith $(BUILD)/llama-2-7b.pith
$(BENCH): $(BUILD)/%.pith: | all
	@$(BUILD)/pith synth --shape $* --bits 2.85 -o $@ >/dev/null
bench: $(BENCH)
	@$(BUILD)/pith bench $(BENCH) --markdown

install: all
	@cmake --build $(BUILD) -j $(JOBS) --target pith_shared pith_static
	@cmake --install $(BUILD) --prefix $(PREFIX)

# ---- The release: libc, libm and the loader are all that its binary asks for -------------------------------------
# Debian ships sentencepiece only as a shared library, so its source package is built statically in the build folder.
SP = build-dist/sentencepiece
$(SP)/libsentencepiece.a: | dist-deps
	@mkdir -p $(SP)/lists/partial
	@apt-get indextargets --format 'deb-src $$(REPO_URI) $$(RELEASE) $$(COMPONENT)' 'Created-By: Packages' | sort -u > $(SP)/sources.list
	@cd $(SP) && apt="-qq -o Dir::Etc::sourcelist=$$PWD/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$$PWD/lists" && \
	  apt-get $$apt update && rm -rf src && apt-get $$apt source --download-only sentencepiece 2>/dev/null && \
	  dpkg-source --no-check -x sentencepiece_*.dsc src >/dev/null && \
	  patch -s -R -p1 -d src < src/debian/patches/disable-static-library.patch
	@cmake -S $(SP)/src -B $(SP)/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
	  -DSPM_ENABLE_SHARED=OFF -DSPM_ENABLE_TCMALLOC=OFF >/dev/null
	@cmake --build $(SP)/build -j $(JOBS) --target sentencepiece-static >/dev/null
	@cp $(SP)/build/src/libsentencepiece.a $@

VERSION = $(shell sed -n 's/^project.pith VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
RELEASE = pith-$(VERSION)-linux-$(shell uname -m)
dist: deps $(SP)/libsentencepiece.a
	@cmake -S . -B build-dist/pith -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_LIBDIR=lib \
	  -DPITH_STATIC_SENTENCEPIECE=$(CURDIR)/$(SP) -DPITH_CUDA_ARCHS=all >/dev/null
	@cmake --build build-dist/pith -j $(JOBS) --target pith pith_shared pith_static
	@rm -rf build-dist/$(RELEASE) && cmake --install build-dist/pith --strip --prefix build-dist/$(RELEASE) >/dev/null
	@cp LICENSE README.md build-dist/$(RELEASE)/
	@mkdir -p dist && tar -C build-dist -czf dist/$(RELEASE).tar.gz --owner=0 --group=0 $(RELEASE)
	@ldd build-dist/$(RELEASE)/bin/pith
	@if ldd build-dist/$(RELEASE)/bin/pith build-dist/$(RELEASE)/lib/libpith.so | grep '=>' | grep -vE 'linux-vdso|libc\.so|libm\.so|ld-linux'; then echo "dist: unexpected library" >&2; exit 1; fi
	@echo "dist/$(RELEASE).tar.gz"

# ---- Housekeeping ------------------------------------------------------------------------------------------------
SOURCES = $(shell git ls-files '*.cpp' '*.h' '*.c' '*.cu' '*.cuh')
format: check-deps
	@clang-format -i $(SOURCES)
check: check-deps
	@clang-format --dry-run -Werror $(SOURCES)

clean:
	rm -rf build build-asan build-tsan build-dist dist
