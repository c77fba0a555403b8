include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/shortconv)
install(TARGETS shortconv EXPORT shortconvTargets FILE_SET HEADERS)
install(EXPORT shortconvTargets NAMESPACE shortconv:: DESTINATION ${package_dir})
configure_package_config_file(cmake/shortconvConfig.cmake.in ${PROJECT_BINARY_DIR}/shortconvConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/shortconvConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/shortconvConfig.cmake ${PROJECT_BINARY_DIR}/shortconvConfigVersion.cmake
        DESTINATION ${package_dir})
if(SHORTCONV_TOOLS)
  install(TARGETS shortconv_cli)
  set_target_properties(shortconv_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
endif()
