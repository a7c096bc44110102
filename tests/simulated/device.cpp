// A device for torch that this machine does not have: "simulated". Tests bake on it as on a GPU.
//
// It does what a GPU may do, and what a program may not rely on:
// - Its memory has no access rights. The host can only reach it by a copy; anything else ends the process.
// - An asynchronous copy (non_blocking, with pinned memory on the host's side) is done as late as possible: when its
//   stream does its next work, or when somebody waits for the stream or for an event behind the copy. Pinned memory
//   that is filled again too soon, or read too soon, gives wrong bytes each time.
// - It has a limited memory, and raises torch.OutOfMemoryError beyond the limit. Each stream keeps a workspace from its
//   first work on, until the cache is emptied, as a GPU's libraries do.
// - It computes with the CPU's kernels, so that its results can be compared bit for bit.
//
// Nothing here calls Python: torch.ops.load_library loads it, ctypes calls the functions at the end.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

namespace {
constexpr auto kSimulated = c10::DeviceType::PrivateUse1;
constexpr size_t kPage = 4096;
constexpr size_t kSpare = size_t(1) << 29;

// -- memory -----------------------------------------------------------------------------------------------

struct Block {
  size_t size;
  int users;  // kernels and copies that have it open
};

class Memory {
 public:
  void* allocate(size_t bytes) {
    if (!bytes) return nullptr;
    std::lock_guard<std::mutex> lock(mutex_);
    size_t size = (bytes + kPage - 1) / kPage * kPage;
    take(size);
    auto spare = spare_.find(size);
    void* start;
    if (spare != spare_.end()) {
      start = spare->second;
      spare_.erase(spare);
      spare_size_ -= size;
    } else {
      start = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      TORCH_CHECK(start != MAP_FAILED, "simulated: the host has no address space left");
      madvise(start, size, MADV_HUGEPAGE);  // fresh small pages cost more than the work on them
    }
    blocks_[(uintptr_t)start] = {size, 0};
    return start;
  }

  void release(void* start) {
    if (!start) return;
    std::lock_guard<std::mutex> lock(mutex_);
    size_t size = blocks_.at((uintptr_t)start).size;
    blocks_.erase((uintptr_t)start);
    used_ -= size;
    if (spare_size_ + size > kSpare) {
      munmap(start, size);
    } else {
      spare_.emplace(size, start);
      spare_size_ += size;
    }
  }

  // Let the host into the block that holds an address, or out of it again.
  void open(const void* address) { change(address, +1); }
  void close(const void* address) { change(address, -1); }

  // Give a stream its workspace unless it has one.
  void work_on(int64_t stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!workspace_ || workspaces_.count(stream)) return;
    take(workspace_);
    workspaces_[stream] = workspace_;
  }

  void empty_cache() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [stream, size] : workspaces_) used_ -= size;
    workspaces_.clear();
  }

  void set_limit(size_t limit, size_t workspace) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = limit;
    workspace_ = workspace;
    peak_ = used_;
    refused_ = 0;
  }

  size_t used() { return read(used_); }
  size_t peak() { return read(peak_); }
  size_t refused() { return read(refused_); }

 private:
  void take(size_t size) {
    if (used_ + size > limit_) {
      refused_++;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "simulated: out of memory: tried to allocate ", size, " bytes, ",
                       limit_ - used_, " of ", limit_, " are free");
    }
    used_ += size;
    peak_ = std::max(peak_, used_);
  }

  void change(const void* address, int users) {
    if (!address) return;
    std::lock_guard<std::mutex> lock(mutex_);
    auto& [start, block] = *std::prev(blocks_.upper_bound((uintptr_t)address));
    bool was_open = block.users, is_open = block.users += users;
    if (was_open != is_open) mprotect((void*)start, block.size, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
  }

  size_t read(const size_t& figure) {
    std::lock_guard<std::mutex> lock(mutex_);
    return figure;
  }

  std::mutex mutex_;
  std::map<uintptr_t, Block> blocks_;
  std::multimap<size_t, void*> spare_;  // released blocks by size
  std::map<int64_t, size_t> workspaces_;
  size_t spare_size_ = 0, limit_ = SIZE_MAX, workspace_ = 0, used_ = 0, peak_ = 0, refused_ = 0;
};
Memory& memory() {
  static auto* one = new Memory;  // lives as long as the process: tensors may end after static objects
  return *one;
}

struct DeviceAllocator final : c10::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* start = memory().allocate(bytes);
    return {start, start, &release, c10::Device(kSimulated, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, size_t) const override { TORCH_CHECK(false, "simulated: no plain copies"); }
  static void release(void* start) { memory().release(start); }
};
DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(kSimulated, &device_allocator);

class Pinned final : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    void* start = bytes ? aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    std::lock_guard<std::mutex> lock(mutex_);
    if (start) sizes_[(uintptr_t)start] = bytes;
    return {start, start, &release, c10::Device(c10::DeviceType::CPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  bool holds(const void* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto next = sizes_.upper_bound((uintptr_t)address);
    if (next == sizes_.begin()) return false;
    auto& [start, size] = *std::prev(next);
    return (uintptr_t)address < start + size;
  }

 private:
  static void release(void* start);
  std::mutex mutex_;
  std::map<uintptr_t, size_t> sizes_;
};
Pinned& pinned() {
  static auto* one = new Pinned;
  return *one;
}
void Pinned::release(void* start) {
  if (!start) return;
  std::lock_guard<std::mutex> lock(pinned().mutex_);
  pinned().sizes_.erase((uintptr_t)start);
  free(start);
}

// Show a device tensor to the host, for as long as this lives: as a CPU tensor on the same memory.
class Opened {
 public:
  explicit Opened(const at::Tensor& tensor) : address_(tensor.is_cpu() ? nullptr : tensor.storage().data()) {
    memory().open(address_);
    shown = tensor.is_cpu() ? tensor
                            : at::from_blob(tensor.numel() ? tensor.mutable_data_ptr() : nullptr, tensor.sizes(),
                                            tensor.strides(), tensor.options().device(at::kCPU));
  }
  Opened(Opened&& other) noexcept : shown(std::move(other.shown)), address_(std::exchange(other.address_, nullptr)) {}
  ~Opened() { memory().close(address_); }

  at::Tensor shown;

 private:
  const void* address_;
};

// -- streams ----------------------------------------------------------------------------------------------

struct Copy {
  int64_t number;
  at::Tensor from, to;
};
using Copies = std::vector<Copy>;

// The copies that one stream still has to do, in order.
//
// Whoever holds Python's own lock never waits for `work_`: a copy may need that lock, to count the uses of its tensors.
class Stream {
 public:
  void postpone(Copy copy) {
    std::lock_guard<std::mutex> lock(queue_);
    copy.number = ++issued_;
    waiting_.push_back(std::move(copy));
  }

  // Do the copies up to a number. The caller destroys them, without any lock.
  Copies finish(int64_t until = INT64_MAX) {
    Copies done;
    std::lock_guard<std::mutex> lock(work_);
    while (auto copy = next(until)) {
      Opened from(copy->from), to(copy->to);
      to.shown.copy_(from.shown);
      finished_ = copy->number;
      done.push_back(std::move(*copy));
    }
    return done;
  }

  int64_t issued() { return issued_; }
  bool is_done(int64_t until) { return finished_ >= std::min<int64_t>(until, issued_); }

 private:
  std::optional<Copy> next(int64_t until) {
    std::lock_guard<std::mutex> lock(queue_);
    if (waiting_.empty() || waiting_.front().number > until) return std::nullopt;
    auto copy = std::move(waiting_.front());
    waiting_.pop_front();
    return copy;
  }

  std::mutex work_, queue_;
  std::deque<Copy> waiting_;
  std::atomic<int64_t> issued_{0}, finished_{0};
};

Stream& stream_of(int64_t number) {
  static auto* mutex = new std::mutex;
  static auto* streams = new std::map<int64_t, Stream>;
  std::lock_guard<std::mutex> lock(*mutex);
  return (*streams)[number];
}
std::atomic<int64_t> last_stream{0};
thread_local int64_t current_stream = 0;
std::atomic<size_t> copies_postponed{0}, copies_at_once{0};

struct Event {
  int64_t stream, until;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream(int64_t number) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kSimulated, 0), number);
  }
  c10::DeviceType type() const override { return kSimulated; }
  c10::Device exchangeDevice(c10::Device) const override { return {kSimulated, 0}; }
  c10::Device getDevice() const override { return {kSimulated, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return stream(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(++last_stream); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(++last_stream); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    return stream(std::exchange(current_stream, next.id()));
  }
  bool queryStream(const c10::Stream& s) const override { return stream_of(s.id()).is_done(INT64_MAX); }
  void synchronizeStream(const c10::Stream& s) const override { stream_of(s.id()).finish(); }
  void synchronizeDevice(c10::DeviceIndex) const override {
    for (int64_t number = 0; number <= last_stream; number++) stream_of(number).finish();
  }
  void record(void** event, const c10::Stream& s, c10::DeviceIndex, c10::EventFlag) const override {
    delete (Event*)*event;
    *event = new Event{s.id(), stream_of(s.id()).issued()};
  }
  void block(void* event, const c10::Stream&) const override { synchronizeEvent(event); }
  void synchronizeEvent(void* event) const override {
    if (auto* one = (Event*)event) stream_of(one->stream).finish(one->until);
  }
  bool queryEvent(void* event) const override {
    auto* one = (Event*)event;
    return !one || stream_of(one->stream).is_done(one->until);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete (Event*)event; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* address) const override { return pinned().holds(address); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned(); }
  at::Device getDeviceFromPtr(void*) const override { return {kSimulated, 0}; }
};
Hooks hooks;
const bool has_hooks = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

// -- operators --------------------------------------------------------------------------------------------

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &device_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const auto& host = from.is_cpu() ? from : to;
  if (non_blocking && host.is_cpu() && pinned().holds(host.storage().data())) {
    copies_postponed++;
    stream_of(current_stream).postpone({0, from, to});
    return to;
  }
  copies_at_once++;
  auto done = stream_of(current_stream).finish();
  Opened source(from), target(to);
  target.shown.copy_(source.shown);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const at::Tensor& resize(const at::Tensor& tensor, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  size_t bytes = (impl->numel() + impl->storage_offset()) * tensor.itemsize();
  if (tensor.storage().nbytes() < bytes) {
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(device_allocator.allocate(bytes));
    storage->set_nbytes(bytes);
  }
  return tensor;
}

at::Scalar local_scalar_dense(const at::Tensor& tensor) {
  auto host = at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
  copy_from(tensor, host, false);
  return host.item();
}

at::Tensor as_strided(const at::Tensor& tensor, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, size, stride, offset);
}
at::Tensor view(const at::Tensor& tensor, at::IntArrayRef size) { return at::native::view(tensor, size); }
at::Tensor reshape_alias(const at::Tensor& tensor, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::_reshape_alias(tensor, size, stride);
}

// Call the CPU's kernel on the device's own memory where an operator makes new tensors or changes its arguments in place.
bool is_plain(const c10::FunctionSchema& schema) {
  for (auto& argument : schema.arguments()) {
    auto kind = argument.type()->kind();
    if (argument.kwarg_only() && argument.alias_info()) return false;  // out=
    if (kind == c10::TypeKind::TensorType) continue;
    if (kind == c10::TypeKind::ListType || kind == c10::TypeKind::OptionalType) {
      if (argument.type()->containedType(0)->kind() == c10::TypeKind::TensorType) return false;
      if (!argument.type()->containedType(0)->containedTypes().empty()) return false;
    }
  }
  for (auto& returned : schema.returns()) {
    if (returned.type()->kind() != c10::TypeKind::TensorType) return false;
    if (returned.alias_info() && !returned.alias_info()->isWrite()) return false;  // a view
  }
  return true;
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  memory().work_on(current_stream);
  auto& schema = op.schema();
  if (!is_plain(schema)) return at::native::cpu_fallback(op, stack);
  auto done = stream_of(current_stream).finish();
  size_t count = schema.arguments().size(), first = stack->size() - count;
  std::vector<at::Tensor> own(count);
  std::vector<Opened> opened;
  opened.reserve(count);
  bool on_device = false;
  for (size_t i = 0; i < count; i++) {
    auto& value = (*stack)[first + i];
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    own[i] = value.toTensor();
    on_device = on_device || !own[i].is_cpu();
    opened.emplace_back(own[i]);
    value = opened.back().shown;
  }
  if (!on_device) return at::native::cpu_fallback(op, stack);
  std::vector<at::Tensor> shown(count);
  for (size_t i = 0; i < count; i++)
    if (own[i].defined()) shown[i] = (*stack)[first + i].toTensor();
  op.callBoxed(stack);
  for (size_t r = stack->size() - schema.returns().size(); r < stack->size(); r++) {
    auto& value = (*stack)[r];
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    auto made = value.toTensor();
    at::Tensor result;
    for (size_t i = 0; i < count && !result.defined(); i++)
      if (shown[i].defined() && made.is_same(shown[i])) result = own[i];
    if (!result.defined()) {
      result = at::empty_strided(made.sizes(), made.strides(), made.options().device(c10::Device(kSimulated, 0)));
      Opened target(result);
      target.shown.copy_(made);
    }
    value = result;
  }
}
}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

extern "C" {
// Allow so many bytes, of which each stream at work keeps `workspace`; begin the figures anew.
void simulated_limit(size_t limit, size_t workspace) { memory().set_limit(limit, workspace); }
void simulated_empty_cache() { memory().empty_cache(); }
size_t simulated_used() { return memory().used(); }
size_t simulated_peak() { return memory().peak(); }
size_t simulated_refused() { return memory().refused(); }
size_t simulated_copies_postponed() { return copies_postponed; }
size_t simulated_copies_at_once() { return copies_at_once; }
}
