// Loaded into the broker before the C library: lets the writes and syncs of its store
// fail with the errno that stands in the file named by FAILING_DISK, if there is one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failure(int fd) {
    const char *told = getenv("FAILING_DISK");
    FILE *file = told ? fopen(told, "r") : NULL;
    if (!file) return 0;
    int number = 0;
    if (fscanf(file, "%d", &number) != 1) number = 0;
    fclose(file);
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "credbroker.db") && !strstr(path, ".emergency") ? number : 0;
}

#define OR_FAIL(result, name, parameters, arguments)                           \
    result name parameters {                                                   \
        static result(*real) parameters;                                       \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);       \
        int number = failure(fd);                                              \
        if (number) {                                                          \
            errno = number;                                                    \
            return -1;                                                         \
        }                                                                      \
        return real arguments;                                                 \
    }

OR_FAIL(ssize_t, write, (int fd, const void *bytes, size_t count), (fd, bytes, count))
OR_FAIL(ssize_t, pwrite, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at))
OR_FAIL(ssize_t, pwrite64, (int fd, const void *bytes, size_t count, off64_t at), (fd, bytes, count, at))
OR_FAIL(int, fsync, (int fd), (fd))
OR_FAIL(int, fdatasync, (int fd), (fd))
OR_FAIL(int, ftruncate, (int fd, off_t length), (fd, length))
OR_FAIL(int, ftruncate64, (int fd, off64_t length), (fd, length))
