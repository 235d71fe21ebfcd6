# Two commands for a new machine: `make demo` and `make test`. The build itself is CMake's; see CMakeLists.txt.

BUILD = build

build:
	cmake -S . -B $(BUILD) >/dev/null
	cmake --build $(BUILD) -j

test: build
	scripts/test.sh $(BUILD)

format:
	git ls-files '*.c' '*.h' '*.inc' | xargs clang-format -i

clean:
	rm -rf build build-*

.PHONY: build test format clean
