//! The memory allocator of the product and of its benchmarks: jemalloc, told to give memory back soon. It allocates; how
//! much anybody may take is decided elsewhere.

/// Rows are allocated on one thread and freed on another: the system's allocator spends a quarter of an echo run on that,
/// and what mimalloc keeps for each thread grows with a run's length.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What is not used again within a second goes back to the system, whichever thread it was freed by. Sooner, and a run spends
/// its time on giving back and asking again; with one arena for each core besides, threads wait for each other.
#[unsafe(export_name = "_rjem_malloc_conf")]
#[expect(unsafe_code, reason = "jemalloc looks for this name, which nobody else has")]
static SETTINGS: &[u8; 37] = b"dirty_decay_ms:1000,muzzy_decay_ms:0\0";
