// Conversion of Python values to arguments of the core.
#include "arguments.hpp"

#include <tvm/ffi/extra/c_env_api.h>

#include <limits>

namespace shortconv::python {
namespace {

const DLTensor* view_of(const TVMFFIAny& value) {
  if (value.type_index == kTVMFFITensor) return TVMFFITensorGetDLTensorPtr(value.v_obj);
  if (value.type_index == kTVMFFIDLTensorPtr) return static_cast<const DLTensor*>(value.v_ptr);
  return nullptr;
}

// Pinned host memory counts as CPU memory, managed memory as GPU memory.
std::optional<DeviceType> device_type_of(DLDeviceType type) {
  switch (type) {
    case kDLCPU:
    case kDLCUDAHost:
      return DeviceType::kCpu;
    case kDLCUDA:
    case kDLCUDAManaged:
      return DeviceType::kCuda;
    default:
      return std::nullopt;
  }
}

}  // namespace

void Arguments::tensor(std::string_view name, TensorRef& tensor) { read(name, next(), tensor); }

void Arguments::tensor(std::string_view name, std::optional<TensorRef>& tensor) {
  read(name, next(), tensor);
}

void Arguments::read(std::string_view name, const TVMFFIAny& value,
                     std::optional<TensorRef>& tensor) {
  if (value.type_index != kTVMFFINone) read(name, value, tensor.emplace());
}

void Arguments::read(std::string_view name, const TVMFFIAny& value, TensorRef& tensor) {
  if (value.type_index == kTVMFFINone) refuse("TypeError", name, "is None; expected a tensor");
  const DLTensor* view = view_of(value);
  if (view == nullptr) refuse("TypeError", name, "is not a tensor");
  const std::optional<DeviceType> device = device_type_of(view->device.device_type);
  if (!device) {
    refuse("ValueError", name,
           "is on a device of type " + std::to_string(view->device.device_type) +
               " (DLPack's number); expected memory of the CPU or of CUDA");
  }
  if (view->ndim > kMaxDims) {
    refuse("ValueError", name,
           "has " + std::to_string(view->ndim) + " axes; expected at most " +
               std::to_string(kMaxDims));
  }
  if (view->dtype.lanes != 1) refuse("ValueError", name, "has vector elements");
  tensor.data = static_cast<std::byte*>(view->data) + view->byte_offset;
  tensor.dtype = static_cast<DType>(view->dtype.code << 8 | view->dtype.bits);
  tensor.device = {*device, *device == DeviceType::kCpu ? 0 : view->device.device_id};
  tensor.ndim = view->ndim;
  std::int64_t dense = 1;
  for (int axis = view->ndim - 1; axis >= 0; --axis) {
    tensor.shape[axis] = view->shape[axis];
    tensor.strides[axis] = view->strides != nullptr ? view->strides[axis] : dense;
    dense *= view->shape[axis];
  }
}

std::optional<std::int64_t> Arguments::optional_integer(std::string_view name) {
  const TVMFFIAny& value = next();
  if (value.type_index == kTVMFFINone) return std::nullopt;
  if (value.type_index != kTVMFFIInt && value.type_index != kTVMFFIBool) {
    refuse("TypeError", name, "is not an integer");
  }
  return value.v_int64;
}

std::int64_t Arguments::integer(std::string_view name, std::optional<std::int64_t> if_none) {
  std::optional<std::int64_t> value = optional_integer(name);
  if (!value) value = if_none;
  if (!value) refuse("TypeError", name, "is None; expected an integer");
  return *value;
}

std::int32_t Arguments::small_integer(std::string_view name, std::optional<std::int64_t> if_none) {
  const std::int64_t value = integer(name, if_none);
  if (value < std::numeric_limits<std::int32_t>::min() ||
      value > std::numeric_limits<std::int32_t>::max()) {
    refuse("ValueError", name, "is " + std::to_string(value) + ", which does not fit into 32 bits");
  }
  return static_cast<std::int32_t>(value);
}

bool Arguments::flag(std::string_view name, bool absent) { return integer(name, absent) != 0; }

double Arguments::number(std::string_view name) {
  const TVMFFIAny& value = next();
  if (value.type_index == kTVMFFIFloat) return value.v_float64;
  if (value.type_index == kTVMFFIInt) return static_cast<double>(value.v_int64);
  refuse("TypeError", name, "is not a number");
}

void* Arguments::stream_of(std::string_view name, const TVMFFIAny& value, const TensorRef& tensor) {
  switch (value.type_index) {
    case kTVMFFINone:
      if (tensor.device.type != DeviceType::kCuda) return nullptr;
      return TVMFFIEnvGetStream(kDLCUDA, tensor.device.index);
    case kTVMFFIOpaquePtr:
      return value.v_ptr;
    case kTVMFFIInt:
      return reinterpret_cast<void*>(value.v_int64);
    default:
      refuse("TypeError", name, "is neither a handle (int) nor an object with __cuda_stream__");
  }
}

const TVMFFIAny& Arguments::next() {
  static constexpr TVMFFIAny kNone{};
  if (left_ == 0) return kNone;
  --left_;
  return *values_++;
}

std::string_view Arguments::text_of(std::string_view name, const TVMFFIAny& value) {
  const auto view = [](TVMFFIByteArray bytes) { return std::string_view(bytes.data, bytes.size); };
  switch (value.type_index) {
    case kTVMFFIRawStr:
      return value.v_c_str;
    case kTVMFFISmallStr:
      return view(TVMFFISmallBytesGetContentByteArray(&value));
    case kTVMFFIStr:
      return view(*TVMFFIBytesGetByteArrayPtr(value.v_obj));
    default:
      refuse("TypeError", name, "is not a string");
  }
}

void Arguments::refuse(const char* exception, std::string_view name, std::string_view text) {
  throw BadArgument{exception, std::string(name) + ": " + std::string(text)};
}

}  // namespace shortconv::python
