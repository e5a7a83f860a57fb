# Read by CMake in the build of llama-cpp-python, whose CMakeLists.txt forces LLAMA_BUILD_COMMON to ON: as a variable it is OFF all the same.
# llama.cpp's common library (chat templates, a JSON parser, an HTTP client) takes as long to compile as llama.cpp, and only its own programs
# use it.
set(LLAMA_BUILD_COMMON OFF)
