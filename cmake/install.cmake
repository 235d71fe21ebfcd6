# cmake --install. Nothing installed holds an absolute path: the prefix can be moved.
include(CMakePackageConfigHelpers)

set(NSA_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/nsa)
set(NSA_PC_DIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(TARGETS nsa nsa_static EXPORT nsa)
install(FILES include/nsa.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

# find_package(nsa): nsa::nsa, and nsa::nsa_static for those who link the archive. Neither needs another package.
set(compatibility SameMajorVersion)
if(PROJECT_VERSION_MAJOR EQUAL 0)
    set(compatibility SameMinorVersion)
endif()
install(EXPORT nsa NAMESPACE nsa:: FILE nsaConfig.cmake DESTINATION ${NSA_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/nsaConfigVersion.cmake COMPATIBILITY ${compatibility})
install(FILES ${PROJECT_BINARY_DIR}/nsaConfigVersion.cmake DESTINATION ${NSA_CMAKE_DIR})

# pkg-config nsa
file(RELATIVE_PATH NSA_PC_TO_INCLUDE ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_FULL_INCLUDEDIR})
set(NSA_PC_CUDA "")
if(NSA_CUDA_FOUND)
    set(NSA_PC_CUDA " -lcudart_static -lstdc++ -ldl -lrt -lpthread")
endif()
configure_file(cmake/nsa.pc.in nsa.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/nsa.pc DESTINATION ${NSA_PC_DIR})

install(FILES README.md LICENSE NEWS.md SECURITY.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES docs/nsa.md docs/numerics.md docs/cuda.md DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs)
install(DIRECTORY docs/img DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs)
install(DIRECTORY examples DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN *.c)

if(NSA_LM)
    file(RELATIVE_PATH bin_to_lib ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
    set_target_properties(nsa_command PROPERTIES INSTALL_RPATH $ORIGIN/${bin_to_lib})
    install(TARGETS nsa_command)
    install(FILES docs/nsa.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()
