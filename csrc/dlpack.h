// Arrays of other libraries, as the DLPack protocol hands them over (ABI of DLPack 0.x, "dltensor" capsules; source:
// the Python Specification for DLPack of the array API standard).
#pragma once

#include <cstdint>

namespace phiggml::dlpack {

enum DeviceType : std::int32_t { cpu = 1, cuda_host = 3 };
enum TypeCode : std::uint8_t { integer = 0, unsigned_integer = 1, floating = 2, bfloat = 4 };

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct Tensor {
    void * data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t * shape;
    std::int64_t * strides;  // in numbers; null: C-contiguous
    std::uint64_t byte_offset;
};

struct ManagedTensor {
    Tensor tensor;
    void * manager;
    void (*deleter)(ManagedTensor *);
};

}  // namespace phiggml::dlpack
