//! Kernels of a few lines, and what becomes of them.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, LaunchConfig, PushKernelArg};
use ptx_sim::Sim;

/// A vector of an instruction: operands, and the result, all as bits.
pub(crate) type Vector = (&'static [u64], u64);

/// The stand-in with a stream of its device.
pub(crate) struct Bench {
    pub(crate) sim: Sim,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let sim = Sim::alone().unwrap();
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        // SAFETY: one stream does all the work.
        unsafe { context.disable_event_tracking() };
        Bench { sim, context, stream }
    }

    /// Runs `code` in one thread for each vector, with the operands in %a, %b, %c and %e, and asserts what is in %d.
    /// `types` are those of the operands and, behind them, of the result.
    #[track_caller]
    pub(crate) fn check(&self, code: &str, types: &str, vectors: &[Vector]) {
        let operands: Vec<u64> = vectors
            .iter()
            .flat_map(|(operands, _)| (0..4).map(|index| operands.get(index).copied().unwrap_or(0)))
            .collect();
        let results = self.map(&wrapped(code, types), &operands, vectors.len());
        for ((operands, expected), result) in vectors.iter().zip(results) {
            assert_eq!(result, *expected, "{code} of {operands:#x?}: {result:#x}, not {expected:#x}");
        }
    }

    /// Runs the kernel `test` in a block, with the address of `input` and that of as many results as threads.
    #[track_caller]
    pub(crate) fn map(&self, ptx: &str, input: &[u64], threads: usize) -> Vec<u64> {
        match self.run(ptx, input, threads, 1) {
            Ok(results) => results,
            Err(error) => panic!("{error:?}: {:?}\n{ptx}", self.sim.fault()),
        }
    }

    /// As [`map`](Self::map), for several blocks, each of which has the same place for results.
    pub(crate) fn run(
        &self,
        ptx: &str,
        input: &[u64],
        threads: usize,
        blocks: u32,
    ) -> Result<Vec<u64>, DriverError> {
        let function = self.context.load_module(ptx.into())?.load_function("test")?;
        let input = self.stream.clone_htod(if input.is_empty() { &[0][..] } else { input })?;
        let mut output = self.stream.alloc_zeros::<u64>(threads)?;
        let config =
            LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel, and the stand-in checks bounds.
        unsafe { self.stream.launch_builder(&function).arg(&mut output).arg(&input).launch(config) }?;
        self.stream.synchronize()?;
        self.stream.clone_dtoh(&output)
    }

    /// The fault of a kernel that consists of these lines.
    #[track_caller]
    pub(crate) fn fault(&self, body: &str, threads: usize, blocks: u32) -> String {
        let done = self.run(&kernel(body), &[], threads, blocks);
        let fault = self.sim.fault();
        self.recover();
        assert!(done.is_err(), "nothing was found wrong");
        fault.unwrap_or_else(|| panic!("{done:?}"))
    }

    /// Forgets an error, also that of what was freed while the device had it.
    pub(crate) fn recover(&self) {
        self.sim.reset();
        _ = self.context.check_err();
    }

    /// Runs lines that have no fault.
    #[track_caller]
    pub(crate) fn passes(&self, body: &str, threads: usize, blocks: u32) {
        let done = self.run(&kernel(body), &[], threads, blocks);
        assert!(done.is_ok(), "{:?}", self.sim.fault());
    }
}

/// A kernel `test` with registers %r, %rd, %f, %p and %rs, the output in %out, the input in %in, and the thread in %t.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        "{HEADER}.visible .entry test(.param .u64 test_out, .param .u64 test_in)
{{
	.reg .pred %p<16>;
	.reg .b16 %rs<16>;
	.reg .b32 %r<64>;
	.reg .f32 %f<16>;
	.reg .b64 %rd<32>;
	.reg .b64 %in;
	.reg .b64 %out;
	.reg .b32 %t;
	ld.param.u64 %out, [test_out];
	ld.param.u64 %in, [test_in];
	mov.u32 %t, %tid.x;
{body}
	ret;
}}
"
    )
}

pub(crate) const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// One vector in each thread.
fn wrapped(code: &str, types: &str) -> String {
    let types: Vec<&str> = types.split_whitespace().collect();
    let (result, operands) = types.split_last().unwrap();
    let mut body = String::from("\t.reg .b32 %i; .reg .b64 %from; .reg .b64 %to; .reg .b64 %wide;\n");
    body += "\tmad.wide.u32 %from, %t, 32, %in;\n\tmad.wide.u32 %to, %t, 8, %out;\n";
    for (index, (name, ty)) in ["a", "b", "c", "e"].iter().zip(operands).enumerate() {
        let at = 8 * index;
        body += &match *ty {
            "pred" => format!(
                "\t.reg .pred %{name};\n\tld.global.u32 %i, [%from+{at}];\n\tsetp.ne.u32 %{name}, %i, 0;\n"
            ),
            "b8" => format!("\t.reg .b16 %{name};\n\tld.global.b8 %{name}, [%from+{at}];\n"),
            ty => format!("\t.reg .{ty} %{name};\n\tld.global.{ty} %{name}, [%from+{at}];\n"),
        };
    }
    body += &format!("\t.reg .{result} %d;\n\t{code}\n");
    body += &match *result {
        "pred" => "\tselp.u32 %i, 1, 0, %d;\n\tst.global.u32 [%to], %i;\n".to_owned(),
        ty => format!("\tst.global.{ty} [%to], %d;\n"),
    };
    kernel(&body)
}

pub(crate) fn f32_bits(value: f32) -> u64 {
    value.to_bits().into()
}
