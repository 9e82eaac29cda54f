//! Which tests the options ask for.

use anyhow::bail;

use super::steps::Test;
use crate::args::BenchArgs;

const PROMPT_TOKENS: [usize; 2] = [128, 512];
const CONTEXTS: [usize; 3] = [0, 1024, 4096];

/// The tests, prefill first, for a model of `positions` positions.
///
/// # Errors
/// If a test that was asked for does not fit the model or a step, or there is none.
pub(crate) fn tests(args: &BenchArgs, positions: usize) -> anyhow::Result<Vec<Test>> {
    let tokens = args.decode_tokens;
    if tokens == 0 {
        bail!("--decode-tokens is 0; give at least 1, or --batch 0 to decode nothing");
    }
    let prompts = asked_or(&args.prompt_tokens, &PROMPT_TOKENS, positions);
    let contexts = asked_or(&args.context, &CONTEXTS, positions.saturating_sub(tokens));
    let prefill = prompts.into_iter().filter(|&tokens| tokens > 0).map(|tokens| Test::Prefill { tokens });
    let batches: Vec<usize> = args.batch.iter().copied().filter(|&batch| batch > 0).collect();
    let decode = pairs(&batches, &contexts, args.grid);
    let decode = decode.into_iter().map(|(batch, context)| Test::Decode { batch, context, tokens });
    let mut tests: Vec<Test> = Vec::new();
    for test in prefill.chain(decode) {
        check(args, &test, positions)?;
        if !tests.contains(&test) {
            tests.push(test);
        }
    }
    if args.plot.is_some() && batches.is_empty() {
        bail!("--plot draws what decoding costs; give --batch a number above 0");
    }
    if tests.is_empty() {
        bail!("no test is left; give --prompt-tokens or --batch a number above 0");
    }
    Ok(tests)
}

/// What was asked for, or else what fits of the default.
fn asked_or(asked: &Option<Vec<usize>>, default: &[usize], most: usize) -> Vec<usize> {
    let fitting = || default.iter().copied().filter(|&n| n <= most).collect();
    asked.clone().unwrap_or_else(fitting)
}

/// Every batch at the first context and then the first batch at every other, or all pairs.
fn pairs(batches: &[usize], contexts: &[usize], grid: bool) -> Vec<(usize, usize)> {
    let is_wanted = |b: usize, c: usize| grid || b == 0 || c == 0;
    let numbered = contexts.iter().enumerate();
    numbered
        .flat_map(|(c, &context)| batches.iter().enumerate().map(move |(b, &batch)| (b, c, batch, context)))
        .filter(|&(b, c, ..)| is_wanted(b, c))
        .map(|(_, _, batch, context)| (batch, context))
        .collect()
}

fn check(args: &BenchArgs, test: &Test, positions: usize) -> anyhow::Result<()> {
    if test.context() > positions {
        let (longest, least) = (test.context(), "lower --prompt-tokens, --context or --decode-tokens");
        bail!("{longest} tokens in a context are more than the model's {positions}; {least}");
    }
    if test.batch() > args.max_num_batched_tokens {
        let (batch, most) = (test.batch(), args.max_num_batched_tokens);
        bail!("--batch {batch} is more than --max-num-batched-tokens {most}; raise that, or lower the batch");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn of(options: &str, positions: usize) -> anyhow::Result<Vec<Test>> {
        let line = format!("samebits bench model {options}");
        let Command::Bench(args) = Args::parse_from(line.split_whitespace()).command else { panic!() };
        super::tests(&args, positions)
    }

    fn decode(batch: usize, context: usize) -> Test {
        Test::Decode { batch, context, tokens: 16 }
    }

    #[test]
    fn defaults_are_those_that_fit_the_model() {
        let all = of("", 8192).unwrap();
        assert_eq!(all[..3], [Test::Prefill { tokens: 128 }, Test::Prefill { tokens: 512 }, decode(1, 0)]);
        assert_eq!(all[3..], [decode(4, 0), decode(16, 0), decode(32, 0), decode(1, 1024), decode(1, 4096)]);
        let few = of("--batch 2", 256).unwrap();
        assert_eq!(few, [Test::Prefill { tokens: 128 }, decode(2, 0)]);
    }

    #[test]
    fn a_grid_has_all_pairs() {
        let all = of("--grid --batch 1,2 --context 0,8 --prompt-tokens 0", 64).unwrap();
        assert_eq!(all, [decode(1, 0), decode(2, 0), decode(1, 8), decode(2, 8)]);
        let once = of("--batch 1,1 --context 0 --prompt-tokens 0", 64).unwrap();
        assert_eq!(once, [decode(1, 0)]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_way_out() {
        let refusal = |options| of(options, 256).unwrap_err().to_string();
        assert!(refusal("--prompt-tokens 257").contains("the model's 256"));
        assert!(refusal("--context 250").contains("--context"));
        assert!(refusal("--batch 600").contains("--max-num-batched-tokens"));
        assert!(refusal("--batch 0 --prompt-tokens 0").contains("above 0"));
        assert!(refusal("--decode-tokens 0").contains("--batch 0"));
    }
}
