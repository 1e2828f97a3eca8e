//! Takes the place of the module `allocator` in a build without the cargo feature `jemalloc`: the allocator of the
//! system, wrapped by one that counts the bytes in use.
//!
//! The count has the requested sizes, without the overhead of the allocator. What this costs: `src/server/memory.rs`.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes that the process has allocated and not freed.
pub(crate) fn allocated_bytes() -> u64 {
    ALLOCATOR.allocated() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_follows_what_is_allocated_and_freed_also_by_other_threads() {
        const LARGE: usize = 64 << 20;
        let before = allocated_bytes();
        let large = vec![0_u8; LARGE];
        let with_it = allocated_bytes();
        assert!(with_it >= before + (LARGE as u64) / 2, "{before} {with_it}");
        std::thread::spawn(move || drop(large)).join().unwrap();
        let after = allocated_bytes();
        assert!(after < with_it - (LARGE as u64) / 2, "{with_it} {after}");
    }
}
