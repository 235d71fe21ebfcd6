# Two commands for a new machine: `make demo` and `make test`; then `make install`. The build itself is CMake's; see CMakeLists.txt.

BUILD = build
JOBS = $$(nproc)
PREFIX = /usr/local

build:
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build $(BUILD) -j $(JOBS)

# Trains a small NSA model and its dense twin, compares, asks and draws them: four to five minutes. Results in demo/.
demo: setup
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build $(BUILD) -j $(JOBS) --target nsa nsa_command
	scripts/demo.sh $(BUILD)/nsa demo

test: setup
	$(MAKE) --no-print-directory build
	scripts/test.sh $(BUILD)

# All that is promised about speed: a table, and a file of JSON lines to compare with later. About ten minutes.
RESULTS = bench/results/$$(date -u +%F)-$$(git rev-parse --short HEAD).jsonl
bench: setup
	$(MAKE) --no-print-directory build
	$(BUILD)/nsa bench --json >bench.jsonl.new && mv bench.jsonl.new $(RESULTS)

# The library, the header, the command and its manual into $(DESTDIR)$(PREFIX). The library alone, without the packages
# that the command needs: cmake -DNSA_LM=OFF -DNSA_TESTS=OFF, and cmake --install.
install:
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=$(PREFIX) >/dev/null
	cmake --build $(BUILD) -j $(JOBS) --target nsa nsa_static nsa_command
	DESTDIR=$(DESTDIR) cmake --install $(BUILD)

# nsa.h and the pages of the project as HTML; needs doxygen.
docs:
	scripts/docs.sh $(BUILD)/html

# Installs what is missing (Debian packages).
setup:
	scripts/setup.sh

format:
	git ls-files '*.c' '*.h' '*.inc' | xargs clang-format -i

clean:
	rm -rf build build-*

.PHONY: build demo test bench install docs setup format clean
