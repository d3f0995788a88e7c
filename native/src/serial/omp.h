// What generated code asks OpenMP for, on one thread: a policy's library needs no OpenMP, nor its compiler.
#pragma once

inline int omp_get_max_threads() { return 1; }
inline int omp_get_num_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
inline int omp_in_parallel() { return 0; }
