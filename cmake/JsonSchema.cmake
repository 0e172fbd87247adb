# Adds llama.cpp's converter of JSON schemas to a target: the few files of its library of examples that it needs, and
# none that reaches a network, a terminal or a file. Their names are hidden, so that nothing can meet another copy.

function(phiggml_add_json_schema target)
    set(folder ${PHIGGML_TREE}/common)
    add_library(
        json-schema OBJECT ${PROJECT_SOURCE_DIR}/csrc/upstream/json_schema.cpp ${folder}/json-schema.cpp
                           ${folder}/json.cpp ${folder}/trie.cpp ${folder}/unicode.cpp)
    target_include_directories(json-schema PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
    target_include_directories(
        json-schema SYSTEM PRIVATE ${folder} ${PHIGGML_TREE}/vendor ${PHIGGML_TREE}/include ${PHIGGML_TREE}/ggml/include)
    set_target_properties(json-schema PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    if(NOT MSVC)
        set_source_files_properties(
            ${PROJECT_SOURCE_DIR}/csrc/upstream/json_schema.cpp PROPERTIES COMPILE_OPTIONS "-Wall;-Wextra;-Wpedantic;-Werror")
    endif()
    target_compile_options(json-schema PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-gnu-unique>)
    target_link_libraries(${target} PRIVATE json-schema)
endfunction()
