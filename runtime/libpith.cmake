# libpith: the C API (pith.h) with everything below it, shared and static, and what `cmake --install` lays down.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

target_sources(pith_runtime PRIVATE evaluate.cpp evaluate_task.cpp golden.cpp)

add_library(pith_capi OBJECT capi.cpp capi_model.cpp capi_session.cpp)
target_link_libraries(pith_capi PUBLIC pith_runtime)
set_source_files_properties(capi.cpp PROPERTIES COMPILE_DEFINITIONS PITH_VERSION="${PROJECT_VERSION}")

# The release asks its system for libc and libm alone; a build for the same machine uses its shared libraries.
if(PITH_STATIC_SENTENCEPIECE)
  set(PITH_LINK_OPTIONS -static-libgcc -static-libstdc++)
endif()

# SOVERSION is PITH_ABI of pith.h. Only pith_* leaves the library, whatever its parts define.
file(STRINGS pith.h PITH_ABI_LINE REGEX "^#define PITH_ABI [0-9]+$")
string(REGEX REPLACE "[^0-9]" "" PITH_ABI "${PITH_ABI_LINE}")
add_library(pith_shared SHARED $<TARGET_OBJECTS:pith_capi>)
target_link_libraries(pith_shared PRIVATE pith_runtime)
target_link_options(pith_shared PRIVATE ${PITH_LINK_OPTIONS}
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/install/pith.map)
if(NOT PITH_SANITIZE AND NOT PITH_TSAN)  # a sanitizer's functions come with the program
  target_link_options(pith_shared PRIVATE -Wl,--no-undefined)
endif()
set_target_properties(pith_shared PROPERTIES OUTPUT_NAME pith EXPORT_NAME pith
  VERSION ${PITH_ABI}.${PROJECT_VERSION} SOVERSION ${PITH_ABI} PUBLIC_HEADER pith.h
  LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/install/pith.map)
target_include_directories(pith_shared INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

# One archive of every part; what it needs from outside is in pith.pc (pkg-config --static).
add_library(pith_static STATIC $<TARGET_OBJECTS:pith_capi>)
foreach(part IN LISTS PITH_PARTS)
  target_sources(pith_static PRIVATE $<TARGET_OBJECTS:${part}>)
endforeach()
set_target_properties(pith_static PROPERTIES OUTPUT_NAME pith LINKER_LANGUAGE CXX)

set(PITH_STATIC_LIBS "-lfmt -lsentencepiece -lpcre2-8 -lutf8proc -lxxhash -lstdc++ -lm -lpthread")
if(PITH_HAS_CUDA)
  set_source_files_properties(${PITH_CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(pith_static PRIVATE ${PITH_CUDA_OBJECTS})
  add_dependencies(pith_static pith_cuda)
  set(PITH_STATIC_LIBS "${PITH_CUDART} ${PITH_STATIC_LIBS} -ldl -lrt")
endif()
# Relative, so that an unpacked release is found wherever it lies.
file(RELATIVE_PATH PITH_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" PITH_PC_TO_PREFIX "${PITH_PC_TO_PREFIX}")
if(PITH_STATIC_SENTENCEPIECE)  # the release has no libpith.a
  set(PITH_STATIC_LIBS "")
endif()
configure_file(install/pith.pc.in pith.pc @ONLY)
configure_package_config_file(install/pith-config.cmake.in pith-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pith)
write_basic_package_version_file(pith-config-version.cmake COMPATIBILITY SameMajorVersion)

install(TARGETS pith_shared EXPORT pith-targets)
if(NOT PITH_STATIC_SENTENCEPIECE)  # an archive that asks for others is of no use in a self-contained release
  install(TARGETS pith_static)
endif()
install(EXPORT pith-targets NAMESPACE pith:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pith)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/pith-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/pith-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/pith)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/pith.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES pith.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES install/pith.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME pith)
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
