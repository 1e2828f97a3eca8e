//! The allocator of the `oyez` program: jemalloc, and its count of the bytes in use.
//!
//! Why jemalloc, with figures: `src/server/memory.rs`.
//!
//! The exact count takes 15 us, since jemalloc gathers it from all its arenas. The calling thread's own counters take a
//! nanosecond, and the server is one thread: so their change is added to the last exact count. Memory that another
//! thread frees (the one that writes the history file) is missed in between, so the exact count is taken again after
//! a large change, and after a number of calls.

use std::cell::Cell;

use tikv_jemalloc_ctl::thread::ThreadLocal;
use tikv_jemalloc_ctl::{
    Access, AsName, arenas, background_thread, epoch, max_background_threads, stats, thread,
};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The exact count is taken again when this thread holds this many bytes more or less than at the last one. A flood
/// allocates a MiB in some milliseconds.
const EXACT_AFTER_BYTES: u64 = 1 << 20;

/// Or after this many calls. The server counts at most once a millisecond.
const EXACT_AFTER_CALLS: u32 = 1_000;

/// jemalloc returns a freed page to the system within this time, or twice that, since its thread sleeps for as long.
/// Its default is 10 s. Measured: `src/server/memory.rs`.
const DECAY_MS: isize = 300;

/// jemalloc's default, by which a value that the operator has chosen is recognized.
const DEFAULT_DECAY_MS: isize = 10_000;

thread_local! {
    static COUNT: Cell<Option<Count>> = const { Cell::new(None) };
}

/// The last exact count, and this thread's own counters.
#[derive(Clone, Copy)]
struct Count {
    allocated: ThreadLocal<u64>,
    freed: ThreadLocal<u64>,
    exact: u64,
    own_then: u64,
    calls: u32,
}

impl Count {
    /// Starts the count, and jemalloc's background thread, which returns unused pages to the system. Without the thread
    /// jemalloc returns them only when the program allocates, and a server that is idle after a flood keeps its pages.
    fn start() -> Option<Count> {
        // Before the thread starts: it sleeps for as long as the decay time that it finds. A failure leaves the
        // default.
        let _ = set_decay();
        // Where it is not supported (musl), pages return with the next allocations.
        let _ = max_background_threads::write(1).and_then(|()| background_thread::write(true));
        let (allocated, freed) = (thread::allocatedp::read().ok()?, thread::deallocatedp::read().ok()?);
        Some(Count { allocated, freed, exact: 0, own_then: 0, calls: EXACT_AFTER_CALLS })
    }

    /// Bytes that this thread has allocated less those that it has freed, including those that another thread
    /// allocated.
    fn own(&self) -> u64 {
        self.allocated.get().wrapping_sub(self.freed.get())
    }

    fn read(&mut self) -> u64 {
        let own = self.own();
        let change = own.wrapping_sub(self.own_then) as i64;
        self.calls += 1;
        if (self.calls > EXACT_AFTER_CALLS || change.unsigned_abs() > EXACT_AFTER_BYTES)
            && let Ok(exact) = epoch::advance().and_then(|_| stats::allocated::read())
        {
            (self.exact, self.own_then, self.calls) = (exact as u64, own, 0);
            return self.exact;
        }
        self.exact.saturating_add_signed(change)
    }
}

/// Sets [`DECAY_MS`] for all arenas, unless `_RJEM_MALLOC_CONF` in the environment sets another time.
fn set_decay() -> tikv_jemalloc_ctl::Result<()> {
    let configured: isize = b"opt.dirty_decay_ms\0".name().read()?;
    if configured != DEFAULT_DECAY_MS {
        return Ok(());
    }
    // For arenas of threads that start later.
    b"arenas.dirty_decay_ms\0".name().write(DECAY_MS)?;
    for arena in 0..arenas::narenas::read()? {
        // Arenas that no thread uses yet do not exist.
        let _ = decay_name(arena).as_str().name().write(DECAY_MS);
    }
    Ok(())
}

/// The name under which jemalloc knows the decay time of an arena.
fn decay_name(arena: u32) -> String {
    format!("arena.{arena}.dirty_decay_ms\0")
}

/// Bytes that the process has allocated and not freed, size classes included; 0 if jemalloc does not report it.
pub(crate) fn allocated_bytes() -> u64 {
    COUNT.with(|cell| {
        let mut count = cell.take().or_else(Count::start);
        let bytes = count.as_mut().map_or(0, Count::read);
        cell.set(count);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_pages_decay_fast_in_the_arenas_of_all_threads() {
        fn decay_ms() -> isize {
            drop(std::hint::black_box(vec![0_u8; 100]));
            let arena: u32 = b"thread.arena\0".name().read().unwrap();
            decay_name(arena).as_str().name().read().unwrap()
        }
        allocated_bytes();
        assert_eq!(decay_ms(), DECAY_MS);
        let others = [(); 16].map(|()| std::thread::spawn(decay_ms));
        assert!(others.into_iter().all(|other| other.join().unwrap() == DECAY_MS));
    }

    #[test]
    fn count_follows_what_is_allocated_and_freed_also_by_other_threads() {
        let before = allocated_bytes();
        assert!(before > 0);
        let small = vec![0_u8; 100_000];
        assert!(allocated_bytes() >= before + 100_000, "from this thread's own counters");
        let large = vec![0_u8; 10 << 20];
        let with_both = allocated_bytes();
        assert!(with_both >= before + 100_000 + (10 << 20));
        std::thread::spawn(move || drop(large)).join().unwrap();
        // The next exact count is taken after this many calls at the latest.
        (0..EXACT_AFTER_CALLS).for_each(|_| {
            allocated_bytes();
        });
        let after = allocated_bytes();
        assert!(after < with_both - (9 << 20), "{before} {with_both} {after}");
        drop(small);
    }
}
