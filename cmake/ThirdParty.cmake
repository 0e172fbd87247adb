# Adds ggml and llama.cpp from the pinned tree: fetched when absent, renamed, and with our files in the place of
# theirs where csrc/upstream holds one.

set(PHIGGML_TREE ${PROJECT_SOURCE_DIR}/third_party/llama.cpp)

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
if(NOT PHIGGML_PLUGIN)
    find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
endif()
execute_process(COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/third_party/fetch.py COMMAND_ERROR_IS_FATAL ANY)
file(READ ${PROJECT_SOURCE_DIR}/third_party/llama_cpp.json pin)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/third_party/llama_cpp.json)
string(JSON LLAMA_BUILD_NUMBER GET "${pin}" build_number)
set(LLAMA_BUILD_COMMIT b${LLAMA_BUILD_NUMBER})
# Upstream asks git for a version; it must not be given that of our own repository.
set(ENV{GIT_CEILING_DIRECTORIES} ${PROJECT_SOURCE_DIR}/third_party)

# A default for an upstream option, which -D (or -C cmake.define.NAME=...) overrides.
macro(phiggml_default name value)
    set(${name} ${value} CACHE BOOL "")
endmacro()

set(BUILD_SHARED_LIBS ON)
set(GGML_BACKEND_DL ON)
phiggml_default(GGML_CCACHE OFF)
phiggml_default(GGML_OPENMP OFF)
phiggml_default(LLAMA_OPENSSL OFF)
foreach(part COMMON TOOLS EXAMPLES TESTS SERVER APP MTMD)
    set(LLAMA_BUILD_${part} OFF)
endforeach()
phiggml_default(GGML_CPU_ALL_VARIANTS OFF)
if(GGML_CPU_ALL_VARIANTS)
    phiggml_default(GGML_NATIVE OFF)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64|x86)$")
    phiggml_default(GGML_NATIVE OFF)
    phiggml_detect_host_features()
else()
    phiggml_default(GGML_NATIVE ON)
endif()

add_subdirectory(${PHIGGML_TREE} ${CMAKE_BINARY_DIR}/llama.cpp EXCLUDE_FROM_ALL SYSTEM)

# A name of our own: two packages that both carry libggml-base.so.0 would bind to whichever was loaded first.
foreach(library ggml-base ggml llama)
    set_target_properties(${library} PROPERTIES OUTPUT_NAME phiggml-${library})
    set_property(TARGET ${library} PROPERTY VERSION)
    set_property(TARGET ${library} PROPERTY SOVERSION)
endforeach()

# Modules that are part of this build: the CPU's (one, or all variants) and those of the backends switched on.
set(PHIGGML_MODULES "")
function(phiggml_collect_modules folder)
    get_property(targets DIRECTORY ${folder} PROPERTY BUILDSYSTEM_TARGETS)
    foreach(target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        if(type STREQUAL "MODULE_LIBRARY")
            list(APPEND PHIGGML_MODULES ${target})
        endif()
    endforeach()
    get_property(children DIRECTORY ${folder} PROPERTY SUBDIRECTORIES)
    foreach(child IN LISTS children)
        phiggml_collect_modules(${child})
    endforeach()
    set(PHIGGML_MODULES ${PHIGGML_MODULES} PARENT_SCOPE)
endfunction()
phiggml_collect_modules(${PHIGGML_TREE}/ggml/src)

foreach(target ggml-base ggml llama ${PHIGGML_MODULES})
    set_property(TARGET ${target} PROPERTY VERSION)
    set_property(TARGET ${target} PROPERTY SOVERSION)
    if(APPLE)
        set_target_properties(${target} PROPERTIES INSTALL_RPATH "@loader_path")
    elseif(UNIX)
        set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN")
        target_link_options(${target} PRIVATE -Wl,-Bsymbolic)
    endif()
    # GCC makes static variables of inline functions unique in the whole process, whatever library they are in: another
    # package's llama.cpp would share ours.
    target_compile_options(
        ${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-gnu-unique>)
endforeach()

# A module is asked for its entry points only. What else it exports could meet another package's module of that name.
if(UNIX AND NOT APPLE)
    foreach(module IN LISTS PHIGGML_MODULES)
        target_link_options(${module} PRIVATE "LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/module.map")
        set_property(TARGET ${module} APPEND PROPERTY LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/module.map)
    endforeach()
endif()

# GCC 12 drops most of the stores to AMX's tile configuration as dead, and every quantized product then faults
# (docs/decisions.md, 2026-11-22).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    foreach(module IN LISTS PHIGGML_MODULES)
        if(module MATCHES "^ggml-cpu")
            set_source_files_properties(
                ${PHIGGML_TREE}/ggml/src/ggml-cpu/amx/mmq.cpp TARGET_DIRECTORY ${module}
                PROPERTIES COMPILE_OPTIONS "-fno-tree-dse;-fno-dse")
        endif()
    endforeach()
endif()

# ggml_cpu_ops.cpp and ggml_cpu.c #include the ops.cpp and the ggml-cpu.c that they replace in each variant of the CPU
# backend, with that one's flags.
file(GLOB cpu_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/upstream/ggml_cpu_*.cpp)
foreach(module IN LISTS PHIGGML_MODULES)
    if(module MATCHES "^ggml-cpu")
        get_target_property(cpu_sources ${module} SOURCES)
        set(kept ${cpu_sources})
        list(FILTER kept EXCLUDE REGEX "(^|/)ggml-cpu/(ops\\.cpp|ggml-cpu\\.c)$")
        list(LENGTH cpu_sources n_sources)
        list(LENGTH kept n_kept)
        math(EXPR n_replaced "${n_sources} - ${n_kept}")
        if(NOT n_replaced EQUAL 2)
            message(FATAL_ERROR "phiggml: ${module} has no ops.cpp or no ggml-cpu.c; the pinned tree is another one than "
                                "expected")
        endif()
        set_target_properties(${module} PROPERTIES SOURCES "${kept}")
        target_sources(${module} PRIVATE ${cpu_files} ${PROJECT_SOURCE_DIR}/csrc/upstream/ggml_cpu.c)
    endif()
endforeach()

# ggml_quants.c #includes the ggml-quants.c that it replaces, with ggml-base's own flags.
get_target_property(base_sources ggml-base SOURCES)
set(kept ${base_sources})
list(FILTER kept EXCLUDE REGEX "(^|/)ggml-quants\\.c$")
if(kept STREQUAL base_sources)
    message(FATAL_ERROR "phiggml: ggml-base has no ggml-quants.c; the pinned tree is another one than expected")
endif()
set_target_properties(ggml-base PROPERTIES SOURCES "${kept}")
target_sources(ggml-base PRIVATE ${PROJECT_SOURCE_DIR}/csrc/upstream/ggml_quants.c)

# Our files stand in the place of theirs: one of csrc/upstream #includes what it replaces and exports what that keeps
# private, those of csrc/arch define the members of the model classes that upstream declares.
get_target_property(llama_sources llama SOURCES)
set(replaced llama-quant.cpp models/phi3.cpp models/phimoe.cpp)
foreach(source IN LISTS llama_sources)
    foreach(name IN LISTS replaced)
        if(source STREQUAL name OR source MATCHES "/src/${name}$")
            list(REMOVE_ITEM llama_sources ${source})
            list(REMOVE_ITEM replaced ${name})
        endif()
    endforeach()
endforeach()
if(replaced)
    message(FATAL_ERROR "phiggml: the llama target has no ${replaced}; the pinned tree is another one than expected")
endif()
set_target_properties(llama PROPERTIES SOURCES "${llama_sources}")
file(GLOB upstream_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/upstream/*.cpp ${PROJECT_SOURCE_DIR}/csrc/arch/*.cpp)
list(REMOVE_ITEM upstream_files ${cpu_files} ${PROJECT_SOURCE_DIR}/csrc/upstream/json_schema.cpp)
target_sources(llama PRIVATE ${upstream_files})
set_source_files_properties(${upstream_files} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
