# Two commands for a new machine: `make demo` and `make test`; then `make install`. The build itself is CMake's; see CMakeLists.txt.

BUILD = build
JOBS = $$(nproc)
PREFIX = /usr/local

build:
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build $(BUILD) -j $(JOBS)

# Trains a small NSA model and its dense twin, compares, asks and draws them: four to six minutes. Results in demo/.
demo: setup
	cmake -S . -B $(BUILD) -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build $(BUILD) -j $(JOBS) --target nsa nsa_command
	scripts/demo.sh $(BUILD)/nsa demo

test: setup
	$(MAKE) --no-print-directory build
	scripts/test.sh $(BUILD)

# The library and the command with kernels for NVIDIA GPUs (CUDA 12.4 or newer); and the tests that need a GPU, for which
# gcc, cmake and CUDA are enough.
CUDA_BUILD = build-cuda
cuda: setup
	cmake -S . -B $(CUDA_BUILD) -DCMAKE_BUILD_TYPE=Release -DNSA_CUDA=ON >/dev/null
	cmake --build $(CUDA_BUILD) -j $(JOBS)

GPU_BUILD = build-gpu
test-gpu:
	cmake -S . -B $(GPU_BUILD) -DCMAKE_BUILD_TYPE=Release -DNSA_CUDA=ON -DNSA_LM=OFF -DNSA_TESTS=OFF -DNSA_EXAMPLES=OFF >/dev/null
	cmake --build $(GPU_BUILD) -j $(JOBS)
	ctest --test-dir $(GPU_BUILD) --label-regex '^gpu$$' --output-on-failure --no-tests=error

# All that is promised about speed: a table, a file of JSON lines to compare with later, a chart. About ten minutes.
RESULTS = bench/results/$$(date -u +%F)-$$(git rev-parse --short HEAD).jsonl
bench: setup
	$(MAKE) --no-print-directory build
	$(BUILD)/nsa bench --json >bench.jsonl.new && mv bench.jsonl.new $(RESULTS)
	$(BUILD)/nsa bench --from $(RESULTS) --chart docs/img/bench-cpu.png

# The same on a GPU, with a chart of it beside what others reach.
GPU_RESULTS = bench/results/$$(date -u +%F)-$$(git rev-parse --short HEAD)-gpu.jsonl
bench-gpu: cuda
	$(CUDA_BUILD)/nsa bench --device cuda --json >bench.jsonl.new && mv bench.jsonl.new $(GPU_RESULTS)
	$(CUDA_BUILD)/nsa bench --from $(GPU_RESULTS) bench/results/gpu-peers.jsonl --chart docs/img/bench-gpu.png

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
	git ls-files '*.c' '*.h' '*.inc' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build build-*

.PHONY: build demo test cuda test-gpu bench bench-gpu install docs setup format clean
