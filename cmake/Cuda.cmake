# SHORTCONV_CUDA: the CUDA backend; on where nvcc is found, or inside a project that uses CUDA. Everything about the toolkit
# that is not a source file.
if(PROJECT_IS_TOP_LEVEL)
  include(CheckLanguage)
  check_language(CUDA) # sets CMAKE_CUDA_COMPILER
endif()
set(cuda_found OFF)
if(CMAKE_CUDA_COMPILER)
  set(cuda_found ON)
endif()
option(SHORTCONV_CUDA "Build the CUDA backend" ${cuda_found})
if(NOT SHORTCONV_CUDA)
  return()
endif()
if(PROJECT_IS_TOP_LEVEL AND NOT cuda_found)
  message(FATAL_ERROR "SHORTCONV_CUDA is on, but there is no nvcc; put it on the PATH or set CMAKE_CUDA_COMPILER")
endif()

# Has to be known before the language is enabled. A quick build names one: -DCMAKE_CUDA_ARCHITECTURES=90-real.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120-real 120-virtual)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_EXTENSIONS OFF)
# CMake before 3.28 does not know that nvcc 13 speaks C++20.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
find_package(CUDAToolkit REQUIRED)
