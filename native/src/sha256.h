/* SHA-256 (FIPS 180-4). */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void sha256(const unsigned char *bytes, size_t count, unsigned char digest[32]);

#ifdef __cplusplus
}
#endif

#endif
