# The commit that the command was built from, for `nsa info` and `nsa bench --json`; none outside of a git checkout.
execute_process(COMMAND git rev-parse --show-toplevel --git-path logs/HEAD --short HEAD
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE lines ERROR_QUIET RESULT_VARIABLE status
    OUTPUT_STRIP_TRAILING_WHITESPACE)
string(REPLACE "\n" ";" lines "${lines}")
list(LENGTH lines n)
if(status EQUAL 0 AND n EQUAL 3)
    list(GET lines 0 top)
    file(REAL_PATH ${PROJECT_SOURCE_DIR} source)
    if(top STREQUAL source) # not a release inside of another project's repository
        list(GET lines 1 log)
        list(GET lines 2 commit)
        set_source_files_properties(cli/cli.c PROPERTIES COMPILE_DEFINITIONS NSA_COMMIT="${commit}")
        get_filename_component(log ${log} ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
        if(EXISTS ${log}) # grows with each commit and checkout: configure again
            set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${log})
        endif()
    endif()
endif()
