/* check.h - what the C checks share: random numbers, and memory that ends at an unreadable page. */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed = 1;

/* splitmix64 */
static inline uint32_t random_u32(void)
{
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

typedef struct fenced {
    void *data;
    size_t bytes;
    void *map;
    size_t map_bytes;
} fenced;

static inline fenced fence(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    uint8_t *map =
        mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + body, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(2);
    }
    return (fenced){ map + body - bytes, bytes, map, body + page };
}

static inline void release(fenced f)
{
    munmap(f.map, f.map_bytes);
}

#endif
