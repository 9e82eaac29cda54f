//! `samebits bench --kernels`: the linear layers of the CPU, format by format.

use std::time::Instant;

use anyhow::bail;
use samebits::{
    CpuOptions, Device, DeviceOptions, Isa,
    tensor::{Format, HostWeight, Tensor, Weight, testing::random_blocks},
};
use samebits_cpu::Cpu;
use serde_json::{Value, json};

use super::{
    Interrupt, bar,
    machine::{Ceilings, Machine},
    report::{digits, giga, threads},
};
use crate::{args::BenchArgs, output};

/// Rows and columns of the weight of a matrix-vector product: larger than the second-level caches in every format.
const VECTOR: [usize; 2] = [4096, 4096];

/// Tokens, and rows and columns of the weight, of a matrix product.
const MATRIX: (usize, [usize; 2]) = (128, [1536, 1536]);

/// Runs of a product in a round, the fastest of which counts.
const RUNS: usize = 3;

/// Seconds after which a round asks for no other run.
const RUN_SECONDS: f64 = 0.05;

/// A format on an instruction set, and the fastest of its products so far.
struct Case {
    format: Format,
    vector: Product,
    matrix: Product,
}

/// A linear layer and its input.
struct Product {
    x: Tensor<Cpu>,
    weight: Weight<Cpu>,
    seconds: f64,
}

/// All formats on one instruction set, and the highest ceilings so far.
struct Set {
    machine: Machine,
    cases: Vec<Case>,
    peaks: Ceilings,
    /// Bytes a second that are read of as much memory as each format's weight takes.
    reads: Vec<f64>,
}

pub(crate) fn bench(args: &BenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let (device, DeviceOptions { cpu, .. }) = args.device.choice()?;
    if device != Device::Cpu {
        bail!("--kernels measures the CPU's kernels; leave --device out");
    }
    let formats = if args.format.is_empty() { Format::ALL.to_vec() } else { args.format.clone() };
    let isas: Vec<Isa> = cpu.isa.map_or_else(|| Isa::available().collect(), |isa| vec![isa]);
    let sets = isas.iter().map(|&isa| Set::new(CpuOptions { isa: Some(isa), ..cpu }, &formats));
    let mut sets = sets.collect::<anyhow::Result<Vec<_>>>()?;
    let bar = bar("rounds", args.repetitions * isas.len() * formats.len());
    let mut rounds = 0;
    while rounds < args.repetitions && !interrupt.is_set() {
        for set in &mut sets {
            set.round(interrupt, &|| bar.inc(1))?;
        }
        rounds += 1;
    }
    bar.finish_and_clear();
    if sets.iter().any(|set| set.cases.iter().any(|case| case.matrix.seconds.is_infinite())) {
        bail!("interrupted before the first round was complete; nothing was measured");
    }
    match args.json {
        true => println!("{:#}", json!({"sets": sets.iter().map(Set::json).collect::<Vec<_>>()})),
        false => {
            let tables: Vec<_> = sets.iter().map(Set::text).collect();
            print!("{}", tables.join("\n"));
        }
    }
    Ok(())
}

impl Set {
    fn new(options: CpuOptions, formats: &[Format]) -> anyhow::Result<Set> {
        let machine = Machine::new(&options, (VECTOR[0] * VECTOR[1] * 4) as u64)?;
        let cases = formats.iter().map(|&format| {
            let vector = Product::new(machine.cpu(), format, 1, VECTOR)?;
            let matrix = Product::new(machine.cpu(), format, MATRIX.0, MATRIX.1)?;
            Ok(Case { format, vector, matrix })
        });
        let cases = cases.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Set { machine, reads: vec![0.0; cases.len()], cases, peaks: Ceilings::default() })
    }

    /// Runs every case, and the ceilings between them.
    fn round(&mut self, interrupt: &Interrupt, on_case: &dyn Fn()) -> anyhow::Result<()> {
        for (case, read) in self.cases.iter_mut().zip(&mut self.reads) {
            if interrupt.is_set() {
                return Ok(());
            }
            let (int8, f32) = self.machine.peaks();
            self.peaks.int8 = self.peaks.int8.max(int8);
            self.peaks.f32 = self.peaks.f32.max(f32);
            *read = read.max(self.machine.read(case.vector.weight.packed().bytes()));
            case.vector.run()?;
            case.matrix.run()?;
            on_case();
        }
        Ok(())
    }

    fn text(&self) -> String {
        let isa = self.machine.isa();
        let heading = format!(
            "{} ({}), {}: int8 {} GOP/s, f32 {} GOP/s",
            isa.name(),
            isa.title(),
            threads(self.machine.threads()),
            giga(self.peaks.int8),
            giga(self.peaks.f32)
        );
        let columns = ["format", "matvec us", "GB/s", "of reads", "matmul us", "GOP/s", "of peak"];
        let mut rows = vec![columns.map(String::from).to_vec()];
        rows.extend(self.cases.iter().zip(&self.reads).map(|(case, &read)| {
            let percent = |share: f64| format!("{:.0}%", share * 100.0);
            let (bytes, ops) = (case.bytes_per_second(), case.ops_per_second());
            vec![
                case.format.name().into(),
                digits(case.vector.seconds * 1e6),
                giga(bytes),
                percent(bytes / read),
                digits(case.matrix.seconds * 1e6),
                giga(ops),
                percent(ops / self.peak(case.format)),
            ]
        }));
        format!("{heading}\n{}", output::grid(&rows))
    }

    fn json(&self) -> Value {
        let cases = self.cases.iter().zip(&self.reads).map(|(case, read)| {
            json!({
                "format": case.format.name(),
                "matvec": {
                    "rows": VECTOR[0],
                    "columns": VECTOR[1],
                    "seconds": case.vector.seconds,
                    "weight_bytes": case.vector.weight.packed().bytes(),
                    "bytes_per_second": case.bytes_per_second(),
                    "read_bytes_per_second": read,
                    "share_of_ceiling": case.bytes_per_second() / read,
                },
                "matmul": {
                    "tokens": MATRIX.0,
                    "rows": MATRIX.1[0],
                    "columns": MATRIX.1[1],
                    "seconds": case.matrix.seconds,
                    "ops_per_second": case.ops_per_second(),
                    "share_of_ceiling": case.ops_per_second() / self.peak(case.format),
                },
            })
        });
        json!({
            "instruction_set": self.machine.isa().name(),
            "threads": self.machine.threads(),
            "int8_ops_per_second": self.peaks.int8,
            "f32_ops_per_second": self.peaks.f32,
            "formats": cases.collect::<Vec<_>>(),
        })
    }

    /// The ceiling of products with a format's weights.
    fn peak(&self, format: Format) -> f64 {
        if format.is_quantized() { self.peaks.int8 } else { self.peaks.f32 }
    }
}

impl Case {
    /// Bytes of packed weights that the matrix-vector product reads in a second.
    fn bytes_per_second(&self) -> f64 {
        self.vector.weight.packed().bytes() as f64 / self.vector.seconds
    }

    /// Operations that the matrix product does in a second, two a multiply-add.
    fn ops_per_second(&self) -> f64 {
        let (tokens, [rows, cols]) = MATRIX;
        (2 * tokens * rows * cols) as f64 / self.matrix.seconds
    }
}

impl Product {
    fn new(cpu: &Cpu, format: Format, tokens: usize, [rows, cols]: [usize; 2]) -> anyhow::Result<Product> {
        let bytes = random_blocks(format, rows, cols, 1).into();
        let host = HostWeight { name: "weight".into(), format, shape: vec![rows, cols], bytes };
        let values: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        let (x, weight) = (Tensor::of(cpu, [tokens, cols], &values)?, Weight::pack(cpu, &host)?);
        Ok(Product { x, weight, seconds: f64::INFINITY })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut spent = 0.0;
        for _ in 0..RUNS {
            let start = Instant::now();
            std::hint::black_box(self.x.linear(&self.weight)?);
            let seconds = start.elapsed().as_secs_f64();
            self.seconds = self.seconds.min(seconds);
            spent += seconds;
            if spent > RUN_SECONDS {
                break;
            }
        }
        Ok(())
    }
}
