//! Memory of the process with a thousand small sessions, or a hundred loads of a larger one, with the ways that there are to
//! have it back afterwards.
//!
//! `cargo run --release -p outrigger-cpu --example memory -- [shared|device|own] [keep|trim|shrink] [small|large]`
//!
//! The first word: one arena for all sessions, one allocator without an arena for all, or an arena for each. The second: what is
//! done after the sessions are dropped: nothing, `malloc_trim(0)`, or that and the arena's own shrinking. glibc's settings
//! come through `GLIBC_TUNABLES`, another allocator through `LD_PRELOAD`.
#![allow(unsafe_code, reason = "calls ONNX Runtime and the C library")]

use std::ptr::{null, null_mut};

use ort::AsPointer;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::Tensor;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word =
        |number: usize, default: &'static str| words.get(number).map_or(default, String::as_str).to_owned();
    let (arena, after, size) = (word(0, "shared"), word(1, "keep"), word(2, "small"));
    let (widths, sessions, rounds): (&[i64], usize, usize) = match size.as_str() {
        "small" => (&[64, 128, 128, 10], 1000, 4),
        "wide" => (&[64, 1024, 1024, 64], 1, 3),
        _ => (&[512, 1024, 1024, 512], 1, 101),
    };
    let builder = ort::init_from(outrigger_testkit::onnxruntime())?;
    let threads = GlobalThreadPoolOptions::default().with_intra_threads(2)?.with_spin_control(false)?;
    let environment = builder.with_telemetry(false).with_global_thread_pool(threads).build()?;
    let kind = if arena == "device" { AllocatorType::Device } else { AllocatorType::Arena };
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, kind, MemoryType::Default)?;
    if arena != "own" {
        // SAFETY: both pointers are live.
        let status = unsafe {
            (ort::api().CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), null())
        };
        assert!(status.0.is_null());
    }
    let bytes = outrigger_testkit::onnx::mlp(widths);
    let load = || -> ort::Result<Session> {
        let builder = Session::builder(&environment)?;
        let mut builder = if arena == "own" { builder } else { builder.with_env_allocators()? };
        builder.commit_from_memory(&bytes)
    };
    println!("{arena} {after} {size}: {} KB of model", bytes.len() >> 10);
    for round in 0..rounds {
        let start = resident();
        let begun = std::time::Instant::now();
        let mut loaded = (0..sessions).map(|_| load()).collect::<ort::Result<Vec<_>>>()?;
        let (took, after_load) = (begun.elapsed(), resident());
        for session in &mut loaded {
            let input = Tensor::from_array(([1, widths[0]], vec![0.5f32; widths[0] as usize]))?;
            session.run(ort::inputs![input])?;
        }
        if let [session] = &mut loaded[..] {
            let batch = if size == "wide" { 16384 } else { 16 };
            let mut times = Vec::new();
            for _ in 0..20 {
                let input =
                    Tensor::from_array(([batch, widths[0]], vec![0.5f32; (batch * widths[0]) as usize]))?;
                let begun = std::time::Instant::now();
                session.run(ort::inputs![input])?;
                times.push(begun.elapsed());
            }
            times.sort();
            if round % 20 == 0 {
                println!("runs: {:?} {:?}", times[0], times[10]);
            }
        }
        let after_run = resident();
        drop(loaded);
        let dropped = resident();
        let begun = std::time::Instant::now();
        if after == "shrink" {
            shrink(&environment, &memory);
        }
        if after != "keep" {
            // SAFETY: may be called at any time.
            unsafe { libc::malloc_trim(0) };
        }
        let trimmed = begun.elapsed();
        if sessions > 1 || round % 20 == 0 {
            println!(
                "round {round}: start {start} KB, loaded {after_load} (+{} each, {:.2} ms each), run {after_run} (+{} each), \
                 dropped {dropped}, after {} ({:.2} ms)",
                (after_load.saturating_sub(start)) / sessions,
                took.as_secs_f64() * 1e3 / sessions as f64,
                (after_run.saturating_sub(start)) / sessions,
                resident(),
                trimmed.as_secs_f64() * 1e3,
            );
        }
    }
    Ok(())
}

fn shrink(environment: &Environment, memory: &MemoryInfo<'_>) {
    let mut allocator = null_mut();
    // SAFETY: all pointers are live; the allocator is ONNX Runtime's.
    unsafe {
        let status =
            (ort::api().GetSharedAllocator)(environment.ptr().cast_mut(), memory.ptr(), &mut allocator);
        assert!(status.0.is_null());
        let _ = allocator;
        TINY.with(|tiny| {
            let mut tiny = tiny.borrow_mut();
            if tiny.is_none() {
                let bytes = outrigger_testkit::onnx::add(1);
                *tiny = Some(
                    Session::builder(environment)
                        .unwrap()
                        .with_env_allocators()
                        .unwrap()
                        .commit_from_memory(&bytes)
                        .unwrap(),
                );
            }
            let input = || Tensor::from_array(([1i64, 1], vec![0.5f32])).unwrap();
            let mut options = ort::session::RunOptions::new().unwrap();
            options.set("memory.enable_memory_arena_shrinkage", "cpu:0").unwrap();
            tiny.as_mut().unwrap().run_with_options(ort::inputs![input(), input()], &options).unwrap();
        });
    }
}

thread_local! { static TINY: std::cell::RefCell<Option<Session>> = const { std::cell::RefCell::new(None) }; }

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
