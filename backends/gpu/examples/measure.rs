//! Measures every device, those in software too: a table, then the same as JSON.
//!
//! `cargo run --release -p outrigger-gpu --example measure`

use std::process::ExitCode;

use outrigger_gpu::{Effort, Figure, Gpu, Measurement, measure};

/// One of a device's figures.
type Pick = fn(&Measurement) -> Figure;

fn main() -> ExitCode {
    match all() {
        Ok(measured) => {
            table(&measured);
            println!("\n{}", serde_json::json!({ "devices": measured }));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> Result<Vec<Measurement>, Box<dyn std::error::Error>> {
    let devices = Gpu::list(true)?;
    let measured = (0..devices.len()).map(|index| Ok(measure(&Gpu::open(index, true)?, Effort::default())?));
    measured.collect()
}

fn table(measured: &[Measurement]) {
    println!(
        "{:<44} {:<11} {:>18} {:>20} {:>16}",
        "DEVICE", "HARDWARE", "GB/s (spread)", "GFLOP/s (spread)", "launch (spread)"
    );
    let cell = |figure: Figure, scale: f64, unit: &str| {
        format!("{:.1}{unit} ({:.1}x)", figure.best * scale, figure.spread())
    };
    for Measurement { device, bandwidth, flops, launch } in measured {
        println!(
            "{:<44} {:<11} {:>18} {:>20} {:>16}",
            device.name,
            format!("{:?}", device.hardware).to_lowercase(),
            cell(*bandwidth, 1e-9, ""),
            cell(*flops, 1e-9, ""),
            cell(*launch, 1e6, " us"),
        );
    }
    for (at, one) in measured.iter().enumerate() {
        for other in &measured[at + 1..] {
            let figures: [(&str, Pick); 3] =
                [("bandwidth", |one| one.bandwidth), ("sums", |one| one.flops), ("launch", |one| one.launch)];
            for (name, figure) in figures.iter().filter(|(_, figure)| one.compare(other, figure).is_none()) {
                let ratio = figure(one).best / figure(other).best;
                println!(
                    "{name} of `{}` and `{}`: {ratio:.1}x apart, which is noise",
                    one.device.name, other.device.name
                );
            }
        }
    }
}
