/* mmap and its refusals in words. */
#include "model/load/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int mapping_open(const char *path, const unsigned char **map, size_t *bytes, char *error,
                 size_t error_bytes)
{
    struct stat status = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int failure = 0;
    void *memory;

    if (fd < 0 || fstat(fd, &status) != 0)
        failure = errno;
    else if (S_ISDIR(status.st_mode))
        failure = EISDIR;
    else if (!S_ISREG(status.st_mode))
        failure = ENODEV;
    if (failure == 0 && status.st_size == 0) {
        snprintf(error, error_bytes, "the file is empty");
        close(fd);
        return -EINVAL;
    }
    if (failure == 0) {
        memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (memory == MAP_FAILED) {
            failure = errno;
        } else {
            *map = memory;
            *bytes = (size_t)status.st_size;
        }
    }
    if (fd >= 0)
        close(fd);
    if (failure != 0)
        snprintf(error, error_bytes, "%s", failure == ENODEV ? "not a file" : strerror(failure));
    return failure == ENODEV ? -EINVAL : -failure;
}

void mapping_close(const unsigned char *map, size_t bytes)
{
    if (map != NULL)
        munmap((void *)(uintptr_t)map, bytes);
}

void mapping_prefetch(const unsigned char *map, size_t bytes)
{
    if (map != NULL)
        madvise((void *)(uintptr_t)map, bytes, MADV_WILLNEED);
}
