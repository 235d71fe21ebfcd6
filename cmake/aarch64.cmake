# For AArch64 from another machine, by Debian's cross compiler; tests run under qemu, as a CPU that has everything:
#     cmake -S . -B build-aarch64 --toolchain cmake/aarch64.cmake -DNSA_LM=OFF
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -cpu max)
