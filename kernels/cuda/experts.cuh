// Mixtures of experts, whose weights are the experts' rows one after the other. A pair is a token and one of its `choices`, of number
// `token * choices + choice`. Where pairs are few, blocks of threads have a pair each; where they are many, pairs are put in the
// order of their experts, and blocks have groups of those of one expert. The host knows how many groups there are at most, so that
// it waits for nothing.
#pragma once
#include "contract.cuh"

// Pairs `first..end` of those in order, all of one expert. None where both are equal.
struct Group {
    u32 expert, first, end;
};

// The expert of a pair. One that there is not is noted, and the first takes its place.
__device__ __forceinline__ u32 expert_of(int id, u32 count, u32 op, Fault* fault) {
    return is_row(id, count, op, fault) ? (u32)id : 0;
}
