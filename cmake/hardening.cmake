# What makes a bug harder to exploit, where compiler and linker have it. tests/package checks that it is in the files.
# It costs nothing that can be measured: CPU time of forward, backward and decode with and without it is within 1 %
# (1024 tokens, 16/1 heads, d 64, f32, one thread of an AMD EPYC, best of 72 runs each, 2026-11-24, commit 07a3887).
include(CheckCCompilerFlag)
include(CheckCSourceCompiles)
include(CheckLinkerFlag)
include(CheckPIESupported)

set(CMAKE_REQUIRED_FLAGS -Werror) # clang takes flags that it then says are unused
foreach(flag stack-protector-strong stack-clash-protection cf-protection)
    string(MAKE_C_IDENTIFIER NSA_HAVE_${flag} have)
    check_c_compiler_flag(-f${flag} ${have})
    if(${have})
        add_compile_options($<$<COMPILE_LANGUAGE:C>:-f${flag}>)
    endif()
endforeach()
unset(CMAKE_REQUIRED_FLAGS)

# libc's checks of memcpy, snprintf ... need the optimiser, and would hide calls from the sanitizers.
if(NOT NSA_SANITIZE)
    set(CMAKE_REQUIRED_FLAGS "-O2 -Werror -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3")
    check_c_source_compiles("#include <string.h>\nint main(void) { return 0; }" NSA_HAVE_FORTIFY_3)
    unset(CMAKE_REQUIRED_FLAGS)
    set(level 2)
    if(NSA_HAVE_FORTIFY_3)
        set(level 3)
    endif()
    add_compile_options(
        "$<$<AND:$<COMPILE_LANGUAGE:C>,$<NOT:$<CONFIG:Debug>>>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=${level}>")
endif()

foreach(flag relro now noexecstack)
    check_linker_flag(C LINKER:-z,${flag} NSA_HAVE_Z_${flag})
    if(NSA_HAVE_Z_${flag})
        add_link_options(LINKER:-z,${flag})
    endif()
endforeach()
check_pie_supported(LANGUAGES C)
