include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/shortconv)
install(TARGETS shortconv EXPORT shortconvTargets FILE_SET HEADERS)
install(EXPORT shortconvTargets NAMESPACE shortconv:: DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/licenses DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(is_static ON)
if(BUILD_SHARED_LIBS)
  set(is_static OFF)
endif()

# Libraries for linking the static library without a C++ compiler.
set(cxx_runtime ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER cxx_runtime INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+|c\\+\\+abi|m)$")
list(REMOVE_DUPLICATES cxx_runtime)
configure_package_config_file(cmake/shortconvConfig.cmake.in ${PROJECT_BINARY_DIR}/shortconvConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/shortconvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/shortconvConfig.cmake ${PROJECT_BINARY_DIR}/shortconvConfigVersion.cmake
        DESTINATION ${package_dir})

# shortconv.pc names its folders by its own, so that the prefix may be moved.
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_LIBDIR BASE_DIRECTORY "\${prefix}" OUTPUT_VARIABLE pc_libdir)
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_INCLUDEDIR BASE_DIRECTORY "\${prefix}" OUTPUT_VARIABLE pc_includedir)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
           OUTPUT_VARIABLE pc_prefix)
list(TRANSFORM cxx_runtime PREPEND -l OUTPUT_VARIABLE pc_runtime)
list(JOIN pc_runtime " " pc_runtime)
set(pc_cuda "")
if(SHORTCONV_CUDA)
  set(pc_cuda "-L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt")
endif()
set(pc_requires "")
if(is_static) # a shared library names what it needs itself
  set(pc_requires libhwy)
endif()
configure_file(cmake/shortconv.pc.in ${PROJECT_BINARY_DIR}/shortconv.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/shortconv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(SHORTCONV_TOOLS)
  install(TARGETS shortconv_cli)
  set_target_properties(shortconv_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
endif()
