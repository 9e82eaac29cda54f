//! The whole engine against a fake device, under a seeded storm of arrivals, cancels and failures.
//!
//! Every stream must equal the oracle: the same request alone, with plenty of pages, one token a step. A failing run
//! prints its seed; `SAMEBITS_SIM_SEED=<seed>` runs that seed alone, `SAMEBITS_SIM_RUNS=<n>` runs more seeds.

mod device;
mod world;

use std::env;

use samebits_engine::{
    AdmitError, Engine, EngineConfig, EngineError, Event, FinishReason, Request, RequestError, RequestId,
    RunnerError, Sampler, SamplingParams, Scratch, StopCause,
};

use device::{Chaos, FakeDevice, Random};
use world::{World, oracle, plenty, vocabulary};

const RUNS: u64 = 3000;

#[test]
fn every_stream_equals_the_oracle_whatever_happens_around_it() {
    let variable = |name| env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seeds = match variable("SAMEBITS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("SAMEBITS_SIM_RUNS").unwrap_or(RUNS),
    };
    let whole = seeds.end - seeds.start >= RUNS;
    let mut seen = world::Coverage::default();
    for seed in seeds {
        let report = SeedReport(seed);
        World::new(seed).run(&mut seen);
        drop(report);
    }
    if whole {
        seen.assert_complete();
    }
}

/// Names the seed when the run under it panics.
struct SeedReport(u64);

impl Drop for SeedReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation failed; rerun with SAMEBITS_SIM_SEED={}", self.0);
        }
    }
}

/// The oracle is an engine too; this ties it to the definition, a loop without engine, pages or batches.
#[test]
fn the_oracle_equals_a_plain_loop_over_the_sampler() {
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let prompt: Vec<u32> = (0..1 + random.below(9)).map(|_| random.below(48) as u32).collect();
        let mut request = Request::new(RequestId(7), prompt.clone(), 12);
        request.stop.ignore_eos = true;
        request.sampling = SamplingParams {
            seed,
            temperature: 0.7,
            frequency_penalty: 0.4,
            repetition_penalty: 1.2,
            ..SamplingParams::default()
        };
        let mut tokens = prompt.clone();
        let mut sampler = Sampler::new(request.sampling.clone(), &prompt);
        while tokens.len() < prompt.len() + 12 {
            let mut logits = device::logits_after(tokens.iter().copied());
            match sampler.sample(&mut logits, tokens.len() as u64, &[], &mut Scratch::default()) {
                Ok(sampled) => {
                    tokens.push(sampled.token);
                    sampler.observe(sampled.token);
                }
                Err(_) => break,
            }
        }
        assert_eq!(world::tokens(&oracle(&request)), tokens[prompt.len()..]);
    }
}

fn engine_on(device: FakeDevice, config: EngineConfig) -> Engine {
    Engine::new(Box::new(device), vocabulary(), config).unwrap()
}

fn drain(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
    }
    events
}

fn endless(id: u64, max_tokens: usize) -> Request {
    let mut request = Request::new(RequestId(id), vec![id as u32 % 40 + 2, 9], max_tokens);
    request.stop.ignore_eos = true;
    request
}

#[test]
fn cancelling_frees_pages_while_the_step_is_in_flight() {
    let mut engine = engine_on(FakeDevice::new(plenty(), Chaos::none()), EngineConfig::default());
    engine.add(endless(1, 50)).unwrap();
    assert_eq!(engine.step().unwrap(), []);
    assert_eq!(engine.stats().pages_owned, 1);
    assert!(engine.cancel(RequestId(1)));
    assert_eq!(engine.stats().pages_owned, 0);
    assert!(!engine.cancel(RequestId(1)), "it has ended");
    assert!(!engine.is_idle(), "its end event and the step in flight are still to come");
    let events = drain(&mut engine);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].finish_reason(), Some(FinishReason::Cancelled));
}

#[test]
fn pages_of_a_cancelled_request_may_be_reused_at_once_under_the_same_id() {
    let limits = samebits_engine::Limits { pages: 2, ..plenty() };
    let mut engine = engine_on(FakeDevice::new(limits, Chaos::none()), EngineConfig::default());
    engine.add(endless(1, 20)).unwrap();
    engine.step().unwrap();
    engine.step().unwrap();
    engine.cancel(RequestId(1));
    let again = endless(1, 20);
    engine.add(again.clone()).unwrap();
    let events = drain(&mut engine);
    assert_eq!(events[0].finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(events[1..], oracle(&again));
}

#[test]
fn a_lost_device_ends_every_request_and_then_the_engine() {
    let chaos = Chaos { lost_per_mille: 1000, ..Chaos::none() };
    let config = EngineConfig { max_running: 1, ..EngineConfig::default() };
    let mut engine = engine_on(FakeDevice::new(plenty(), chaos), config);
    engine.add(endless(1, 5)).unwrap();
    engine.add(endless(2, 5)).unwrap();
    let events = drain(&mut engine);
    assert_eq!(events.len(), 2);
    for event in events {
        let Event::Failed { error: RequestError::Runner(error), .. } = event else { panic!("{event:?}") };
        assert!(error.is_device_lost());
    }
    assert!(matches!(engine.step(), Err(EngineError::DeviceLost(RunnerError::DeviceLost { .. }))));
    assert!(matches!(engine.add(endless(3, 5)), Err(AdmitError::DeviceLost(_))));
    assert_eq!(engine.stats().pages_owned, 0);
}

/// Tokens of each step, sequence after sequence, while requests run one after the other.
fn steps_of(config: EngineConfig, requests: &[Request]) -> (Vec<usize>, Vec<Event>, Engine) {
    let device = FakeDevice::new(plenty(), Chaos::none());
    let trace = device.trace();
    let mut engine = engine_on(device, config);
    let mut events = Vec::new();
    for request in requests {
        engine.add(request.clone()).unwrap();
        events.extend(drain(&mut engine));
    }
    let steps = trace.lock().unwrap().iter().map(|step| step.iter().map(|part| part.0).sum()).collect();
    (steps, events, engine)
}

fn cached_tokens(events: &[Event]) -> Vec<usize> {
    let usage = |event: &Event| match event {
        Event::Finished { usage, .. } => Some(usage.cached_tokens),
        _ => None,
    };
    events.iter().filter_map(usage).collect()
}

#[test]
fn a_prompt_that_was_seen_is_not_computed_again() {
    let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 46 + 2).collect();
    let request = |id, prompt: &[u32]| {
        let mut request = Request::new(RequestId(id), prompt.to_vec(), 1);
        request.stop.ignore_eos = true;
        request
    };
    let other = Request { cache_salt: "other".into(), ..request(3, &prompt) };
    // The same, its first 32 tokens, and the same for somebody else.
    let requests = [request(1, &prompt), request(2, &prompt), request(4, &prompt[..32]), other];
    let (steps, events, engine) = steps_of(EngineConfig::default(), &requests);
    assert_eq!(steps, [40, 8, 16, 40], "the last token is computed whatever is known");
    assert_eq!(cached_tokens(&events), [0, 32, 16, 0]);
    let stats = engine.stats();
    assert_eq!((stats.prefix_queried_tokens, stats.prefix_hit_tokens), (152, 48));
    assert_eq!((stats.pages_owned, stats.pages_cached, stats.pages_free), (0, 4, 60));
    let config = EngineConfig { prefix_caching: false, ..EngineConfig::default() };
    let (steps, without, engine) = steps_of(config, &requests);
    assert_eq!((steps, engine.stats().pages_cached), (vec![40, 40, 32, 40], 0));
    assert_eq!(world::tokens(&without), world::tokens(&events));
}

#[test]
fn a_conversation_goes_on_from_its_own_output() {
    let first = endless(2, 30);
    let (_, events, _) = steps_of(EngineConfig::default(), std::slice::from_ref(&first));
    let mut prompt = first.prompt.clone();
    prompt.extend(world::tokens(&events));
    prompt.extend([5, 6, 7]);
    let second = Request { prompt, ..endless(3, 1) };
    let (steps, events, _) = steps_of(EngineConfig::default(), &[first, second]);
    // Of 32 tokens the last was sampled and never computed.
    assert_eq!((steps.last(), cached_tokens(&events)), (Some(&19), vec![0, 16]));
}

#[test]
fn retries_are_bounded() {
    let chaos = Chaos { retriable_per_mille: 1000, ..Chaos::none() };
    let config = EngineConfig { max_retries: 4, ..EngineConfig::default() };
    let mut engine = engine_on(FakeDevice::new(plenty(), chaos), config);
    engine.add(endless(1, 5)).unwrap();
    let events = drain(&mut engine);
    assert!(matches!(&events[..], [Event::Failed { error: RequestError::Runner(_), .. }]));
    assert_eq!((engine.stats().retries, engine.stats().steps), (4, 5));
    engine.add(endless(2, 5)).expect("the engine is still usable");
}

#[test]
fn whoever_has_pages_recomputes_when_they_are_lost() {
    let chaos = Chaos { pages_lost_per_mille: 100, ..Chaos::none() };
    let config = EngineConfig { max_retries: 100, ..EngineConfig::default() };
    let device = FakeDevice::new(plenty(), chaos);
    let errors = device.errors();
    let mut engine = engine_on(device, config);
    (1..4).for_each(|id| engine.add(endless(id, 20)).unwrap());
    let events = drain(&mut engine);
    assert!(*errors.lock().unwrap() > 0, "no page was lost");
    for id in 1..4 {
        let of_one = |event: &&Event| event.id() == RequestId(id);
        let own: Vec<Event> = events.iter().filter(of_one).cloned().collect();
        assert_eq!(world::tokens(&own), world::tokens(&oracle(&endless(id, 20))), "request {id}");
    }
}

#[test]
fn a_request_goes_on_elsewhere_from_its_output() {
    let mut request = endless(1, 20);
    request.stop.strings = vec!["bab".into(), "é!".into()];
    request.sampling.frequency_penalty = 0.5;
    let whole = oracle(&request);
    let tokens = world::tokens(&whole);
    for taken in 0..tokens.len() {
        request.generated = tokens[..taken].to_vec();
        assert_eq!(oracle(&request), whole[taken..], "after {taken} tokens");
    }
    request.stop.tokens = vec![*tokens.last().unwrap()];
    request.generated = tokens.clone();
    request.max_tokens = 30;
    let mut engine = engine_on(FakeDevice::new(plenty(), Chaos::none()), EngineConfig::default());
    assert!(matches!(engine.add(request), Err(AdmitError::AlreadyFinished { .. })));
}

#[test]
fn the_queue_is_bounded_in_requests_and_in_tokens() {
    let config = EngineConfig { max_waiting: 2, max_waiting_tokens: 10, ..EngineConfig::default() };
    let mut engine = engine_on(FakeDevice::new(plenty(), Chaos::none()), config);
    engine
        .add(Request::new(RequestId(1), vec![3; 30], 5))
        .expect("an empty queue takes any request that fits");
    let error = engine.add(endless(2, 5)).unwrap_err();
    assert_eq!(error, AdmitError::QueueTokensFull { waiting_tokens: 30, limit: 10 });
    assert!(error.is_overload() && error.parameter().is_none());
    engine.step().unwrap();
    engine.add(endless(2, 5)).unwrap();
    engine.add(endless(3, 5)).unwrap();
    assert_eq!(engine.add(endless(2, 5)), Err(AdmitError::DuplicateId(RequestId(2))));
    assert_eq!(engine.add(endless(4, 5)), Err(AdmitError::QueueFull { waiting: 2 }));
}

#[test]
fn decodes_and_a_prompt_chunk_share_a_step() {
    let limits = samebits_engine::Limits { max_tokens_per_step: 8, ..plenty() };
    let device = FakeDevice::new(limits, Chaos::none());
    let trace = device.trace();
    let mut engine = engine_on(device, EngineConfig::default());
    engine.add(endless(1, 10)).unwrap();
    engine.step().unwrap();
    engine.add(Request::new(RequestId(2), vec![5; 16], 1)).unwrap();
    drain(&mut engine);
    let shapes: Vec<Vec<(usize, bool)>> = trace.lock().unwrap()[..4].to_vec();
    assert_eq!(shapes[0], [(2, true)]);
    assert_eq!(shapes[1], [(1, true), (7, false)], "decode first, the rest for the prompt");
    assert_eq!(shapes[2], [(1, true), (7, false)]);
    assert_eq!(shapes[3], [(1, true), (2, true)]);
}

#[test]
fn nothing_is_computed_twice_without_need() {
    let mut engine = engine_on(FakeDevice::new(plenty(), Chaos::none()), EngineConfig::default());
    let prompts = [1, 7, 50, 130];
    for prompt in prompts {
        let mut request = endless(prompt, 10);
        request.prompt = vec![prompt as u32 % 40; prompt as usize];
        engine.add(request).unwrap();
    }
    let tokens = drain(&mut engine).iter().filter(|event| event.finish_reason().is_none()).count() as u64;
    assert_eq!(tokens, engine.stats().tokens_generated);
    // The last token of each is never computed.
    assert_eq!(engine.stats().tokens_computed, prompts.iter().sum::<u64>() + tokens - 4);
}

#[test]
fn the_latest_arrival_is_preempted_and_loses_nothing() {
    let limits = samebits_engine::Limits { pages: 4, page_size: 4, ..plenty() };
    let mut engine = engine_on(FakeDevice::new(limits, Chaos::none()), EngineConfig::default());
    let requests = [endless(1, 13), endless(2, 13)];
    requests.iter().for_each(|request| engine.add(request.clone()).unwrap());
    let events = drain(&mut engine);
    assert!(engine.stats().preemptions > 0);
    let ends: Vec<u64> =
        events.iter().filter(|event| event.finish_reason().is_some()).map(|event| event.id().0).collect();
    assert_eq!(ends, [1, 2]);
    for request in requests {
        let stream: Vec<Event> = events.iter().filter(|event| event.id() == request.id).cloned().collect();
        assert_eq!(stream, oracle(&request));
    }
}

#[test]
fn a_runner_that_returns_the_wrong_shape_fails_the_step_not_the_engine() {
    let chaos = Chaos { wrong_shape: true, ..Chaos::none() };
    let mut engine = engine_on(FakeDevice::new(plenty(), chaos), EngineConfig::default());
    engine.add(endless(1, 5)).unwrap();
    let events = drain(&mut engine);
    let [Event::Failed { error: RequestError::Runner(RunnerError::Protocol { detail }), .. }] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert!(detail.contains("(1, 48)"), "{detail}");
}

#[test]
fn the_end_of_sequence_is_reported_as_such() {
    let mut request = Request::new(RequestId(1), vec![4, 5], 60);
    request.sampling.logit_bias = vec![(0, 100.0)];
    request.stop.min_tokens = 3;
    let events = oracle(&request);
    assert_eq!(world::tokens(&events).len(), 4);
    let Some(Event::Finished { reason, cause, usage, .. }) = events.last() else { panic!() };
    assert_eq!((*reason, *cause), (FinishReason::Stop, Some(StopCause::EndOfSequence(0))));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (2, 4));
}
