# CUDA, if NSA_CUDA says so: kernels (src/**/*.cu) and their drivers (src/**/*_{simt,sm90}.c) join nsa_objects. The runtime is
# linked statically and the driver is found when a context is made, so the library loads on a machine without either.
set(NSA_CUDA_FOUND OFF)
if(NSA_CUDA STREQUAL "OFF")
    return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    if(NSA_CUDA STREQUAL "ON")
        message(FATAL_ERROR "NSA_CUDA is ON, but there is no nvcc: put it on PATH or name it in the environment variable CUDACXX")
    endif()
    return()
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF) # named below, a for wgmma and setmaxnreg
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
if(CUDAToolkit_VERSION VERSION_LESS 12.4)
    if(NSA_CUDA STREQUAL "ON")
        message(FATAL_ERROR "CUDA ${CUDAToolkit_VERSION} is too old: 12.4 or newer is needed")
    endif()
    return()
endif()
set(NSA_CUDA_FOUND ON)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# As for C: FMA is written, never inferred.
set(NSA_CUDA_OPTIONS -fmad=false -gencode=arch=compute_90a,code=sm_90a
    -Xcompiler=-Wall,-Wextra,-Wshadow,-fno-exceptions,-fno-rtti)
if(NSA_WERROR)
    list(APPEND NSA_CUDA_OPTIONS -Werror=all-warnings)
endif()

# Kernels that are not written for sm_90 are there as PTX of 8.0 too, for GPUs that have no code of their own here.
function(nsa_cuda_architectures)
    list(FILTER ARGN INCLUDE REGEX "\\.cu$")
    list(FILTER ARGN EXCLUDE REGEX "_sm90\\.cu$")
    set_property(SOURCE ${ARGN} APPEND PROPERTY COMPILE_OPTIONS -gencode=arch=compute_80,code=compute_80)
endfunction()
