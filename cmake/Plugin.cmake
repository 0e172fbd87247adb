# Builds one backend as a distribution of its own: backends/<name>/pyproject.toml sets PHIGGML_PLUGIN to <name>.

set(PHIGGML_PLUGIN_PACKAGE phiggml_${PHIGGML_PLUGIN})
set(module ggml-${PHIGGML_PLUGIN_BACKEND})
if(NOT TARGET ${module})
    message(FATAL_ERROR "phiggml: ${PHIGGML_PLUGIN}: the pinned tree has no backend ${PHIGGML_PLUGIN_BACKEND}")
endif()

# The libraries of phiggml itself are in the process already, under names of its own; a vendor's are its wheels' or the
# system's.
if(UNIX AND NOT APPLE)
    set_target_properties(${module} PROPERTIES INSTALL_RPATH "${PHIGGML_PLUGIN_RUNPATH}")
endif()

list(TRANSFORM PHIGGML_PLUGIN_NEEDS REPLACE "(.+)" "\"\\1\"")
list(JOIN PHIGGML_PLUGIN_NEEDS ", " needs)
set(description ${PROJECT_BINARY_DIR}/plugin.json)
file(GENERATE OUTPUT ${description} CONTENT "{
  \"name\": \"${PHIGGML_PLUGIN}\",
  \"build_id\": \"${PHIGGML_BUILD_ID}\",
  \"library\": \"$<TARGET_FILE_NAME:${module}>\",
  \"needs\": [${needs}]
}
")
add_custom_target(phiggml-plugin DEPENDS ${module})
install(TARGETS ${module} LIBRARY DESTINATION ${PHIGGML_PLUGIN_PACKAGE} COMPONENT plugin
        RUNTIME DESTINATION ${PHIGGML_PLUGIN_PACKAGE} COMPONENT plugin)
install(FILES ${description} DESTINATION ${PHIGGML_PLUGIN_PACKAGE} COMPONENT plugin)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/LICENSES/llama.cpp.txt
        DESTINATION ${PHIGGML_PLUGIN_PACKAGE}/licenses COMPONENT plugin)
