# Included by llama-cpp-python's own project (CMAKE_PROJECT_llama_cpp_INCLUDE). It switches llama.cpp's tools' common library on
# with FORCE; a variable that is not in the cache goes before one that is. Nothing that is installed uses that library.
set(LLAMA_BUILD_COMMON OFF)
