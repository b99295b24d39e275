// Stands before the Vulkan loader (LD_PRELOAD): submissions lose the device where a file EDGELLM_LOSE_IF exists, and allocations of
// more than EDGELLM_LACK_AT bytes of it find no memory.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vulkan/vulkan.h>

static PFN_vkQueueSubmit submit;
static PFN_vkAllocateMemory allocate;

static VkResult losing(VkQueue queue, uint32_t n, const VkSubmitInfo* infos, VkFence fence) {
    const char* file = getenv("EDGELLM_LOSE_IF");
    if (file && !access(file, F_OK)) return VK_ERROR_DEVICE_LOST;
    return submit(queue, n, infos, fence);
}

static VkResult lacking(VkDevice device, const VkMemoryAllocateInfo* info, const VkAllocationCallbacks* callbacks, VkDeviceMemory* memory) {
    const char* at = getenv("EDGELLM_LACK_AT");
    if (at && info->allocationSize > (VkDeviceSize)atol(at)) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    return allocate(device, info, callbacks, memory);
}

static PFN_vkVoidFunction instead(const char* name, PFN_vkVoidFunction found) {
    if (!found) return found;
    if (!strcmp(name, "vkQueueSubmit")) return submit = (PFN_vkQueueSubmit)found, (PFN_vkVoidFunction)losing;
    if (!strcmp(name, "vkAllocateMemory")) return allocate = (PFN_vkAllocateMemory)found, (PFN_vkVoidFunction)lacking;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)vkGetDeviceProcAddr;
    return found;
}

PFN_vkVoidFunction vkGetDeviceProcAddr(VkDevice device, const char* name) {
    // The loader's own answer for this name is the symbol that stands before it: ours.
    PFN_vkGetDeviceProcAddr next = (PFN_vkGetDeviceProcAddr)dlsym(dlopen("libvulkan.so.1", RTLD_NOW), "vkGetDeviceProcAddr");
    return instead(name, next(device, name));
}

PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char* name) {
    PFN_vkGetInstanceProcAddr next = (PFN_vkGetInstanceProcAddr)dlsym(dlopen("libvulkan.so.1", RTLD_NOW), "vkGetInstanceProcAddr");
    return instead(name, next(instance, name));
}
