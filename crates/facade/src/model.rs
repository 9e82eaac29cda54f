use std::{
    collections::VecDeque,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use samebits_checkpoint::{
    Checkpoint, GenerationConfig, TokenizerSource,
    chat::{ChatError, ChatInput, ChatTemplate},
    tokenizer::{GgufVocab, Tokenizer},
};
use samebits_engine::{Engine, EngineConfig, Event, Request, RequestId, Runner, Stats, TokenId, Vocabulary};
use samebits_nn::{Config, WeightSource};
use samebits_runner::{MemoryPlan, RunnerConfig};
use serde_json::json;

use crate::{
    CpuOptions, Device, DeviceOptions, Error, Generation, Message, Params, Prompt, Service, Sink, Stream,
    available_memory,
    device::{self, Loading},
    packed_cache::PackedCache,
};

/// A model that is loaded and being served. Cloning shares it.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
    service: Service,
}

/// What is kept of the checkpoint does not hold its files open or mapped.
struct Inner {
    config: Config,
    files: Vec<PathBuf>,
    generation: GenerationConfig,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    plan: MemoryPlan,
    device: Device,
}

/// How a model is to be opened.
pub struct Builder {
    model: String,
    device: Device,
    /// In the order in which they are tried after it.
    fallbacks: VecDeque<Device>,
    options: DeviceOptions,
    runner: RunnerConfig,
    engine: EngineConfig,
    chat_template: Option<String>,
    packed_cache: Option<PathBuf>,
    on_load: Box<dyn Fn(u64, u64)>,
}

/// A model's files and what serving it would take; nothing is loaded.
pub struct Plan {
    /// The files.
    pub checkpoint: Checkpoint,
    /// The bytes.
    pub memory: MemoryPlan,
}

/// A model on its device, without an engine: for measuring, or for a serving core of one's own.
pub struct Loaded {
    /// What was loaded, and its bytes.
    pub plan: Plan,
    /// The model on the device.
    pub runner: Box<dyn Runner>,
}

impl Model {
    /// Opens a model on the default device: a path, a hub id or an alias.
    ///
    /// # Errors
    /// Naming the file, field or tensor that is at fault, or every place that was searched.
    pub fn open(model: &str) -> Result<Self, Error> {
        Self::builder(model).open()
    }

    /// How to open a model, to be changed.
    pub fn builder(model: impl Into<String>) -> Builder {
        Builder {
            model: model.into(),
            device: Device::default(),
            fallbacks: VecDeque::new(),
            options: DeviceOptions::default(),
            runner: RunnerConfig::default(),
            engine: EngineConfig::default(),
            chat_template: None,
            packed_cache: None,
            on_load: Box::new(|_, _| {}),
        }
    }

    /// The whole answer to one prompt.
    ///
    /// # Errors
    /// If the prompt or a parameter is refused, or the request fails.
    pub fn generate(&self, prompt: impl Into<Prompt>, params: &Params) -> Result<Generation, Error> {
        self.stream(prompt, params)?.finish()
    }

    /// The answers to many prompts, computed together, in the order of the prompts. One that fails leaves the others
    /// as they are.
    pub fn generate_all(
        &self,
        prompts: impl IntoIterator<Item = impl Into<Prompt>>,
        params: &Params,
    ) -> Vec<Result<Generation, Error>> {
        let streams: Vec<_> = prompts.into_iter().map(|prompt| self.stream(prompt, params)).collect();
        streams.into_iter().map(|stream| stream?.finish()).collect()
    }

    /// The answer to one prompt, piece by piece.
    ///
    /// # Errors
    /// If the prompt or a parameter is refused.
    pub fn stream(&self, prompt: impl Into<Prompt>, params: &Params) -> Result<Stream, Error> {
        let (sender, events) = mpsc::channel::<Event>();
        let id = self.submit(prompt, params, Box::new(move |event| sender.send(event).is_ok()))?;
        Ok(Stream::new(self.service.clone(), id, events))
    }

    /// Queues a prompt, whose events go to `sink` on the engine's thread.
    ///
    /// # Errors
    /// If the prompt or a parameter is refused; nothing goes to `sink` then.
    pub fn submit(&self, prompt: impl Into<Prompt>, params: &Params, sink: Sink) -> Result<RequestId, Error> {
        let request = Request {
            sampling: params.sampling.clone(),
            stop: params.stop.clone(),
            cache_salt: params.cache_salt.clone(),
            ..Request::new(self.service.next_id(), self.encode(&prompt.into())?, params.max_tokens)
        };
        Ok(self.service.submit(request, sink)?)
    }

    /// Ends a request early.
    pub fn cancel(&self, id: RequestId) {
        self.service.cancel(id);
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// If the model has no chat template, or the template refuses the conversation.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<TokenId>, Error> {
        let tokenizer = &self.inner.tokenizer;
        match prompt {
            Prompt::Text(text) => Ok(tokenizer.encode(text, true, false)?),
            Prompt::Chat(messages) => {
                let template = self.inner.template.as_ref().ok_or(Error::NoTemplate)?;
                Ok(encode_chat(template, tokenizer, messages)?)
            }
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
        }
    }

    /// The text of token ids, without special tokens.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        self.inner.tokenizer.decode(tokens, true)
    }

    /// The model's hyperparameters.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The files that the weights came from.
    pub fn files(&self) -> &[PathBuf] {
        &self.inner.files
    }

    /// How the model's authors suggest to sample from it.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.generation
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.inner.template.is_some()
    }

    /// The bytes that serving it takes.
    pub fn plan(&self) -> &MemoryPlan {
        &self.inner.plan
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The engine's counts at this moment.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub fn stats(&self) -> Result<Stats, Error> {
        Ok(self.service.stats()?)
    }
}

impl Builder {
    /// Serve on this device.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Serve on this device where those named before cannot be opened, or have too little memory; in the order of the calls. Each
    /// one that is passed over is a warning that says why. Without this such a device is an error. The bits are the same.
    pub fn fallback(mut self, device: Device) -> Self {
        self.fallbacks.push_back(device);
        self
    }

    /// Use the host's processors so.
    pub fn cpu(mut self, cpu: CpuOptions) -> Self {
        self.options.cpu = cpu;
        self
    }

    /// Use each device so; [`Builder::cpu`] is a part of it.
    pub fn options(mut self, options: DeviceOptions) -> Self {
        self.options = options;
        self
    }

    /// Serve so: context, cache, step.
    pub fn runner(mut self, runner: RunnerConfig) -> Self {
        self.runner = runner;
        self
    }

    /// Bound the engine so: queue, running sequences, parameters of a request.
    pub fn engine(mut self, engine: EngineConfig) -> Self {
        self.engine = engine;
        self
    }

    /// Use this Jinja text instead of the model's own chat template.
    pub fn chat_template(mut self, text: impl Into<String>) -> Self {
        self.chat_template = Some(text.into());
        self
    }

    /// Keep the weights as this machine reads them in a file of this directory, about as large as the model's, so that another
    /// start maps them instead of packing them again, and processes share their memory. Not by default.
    ///
    /// A file serves one model and one version of this library, under a name made from the model's files; it is checked before
    /// use, and packed anew with a warning if it is damaged. Nothing is ever deleted: files of models that are no longer used
    /// can be removed at any time.
    pub fn packed_cache(mut self, directory: impl Into<PathBuf>) -> Self {
        self.packed_cache = Some(directory.into());
        self
    }

    /// Tell `f` the bytes of weights loaded so far, and those of all.
    pub fn on_load(mut self, f: impl Fn(u64, u64) + 'static) -> Self {
        self.on_load = Box::new(f);
        self
    }

    /// Finds and opens the files, and plans the memory, without loading a weight.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn plan(&self) -> Result<Plan, Error> {
        self.plan_for(device::capabilities(&self.device, &self.options)?.memory_bytes)
    }

    fn plan_for(&self, device_memory: Option<u64>) -> Result<Plan, Error> {
        let checkpoint = Checkpoint::open(samebits_checkpoint::resolve(&self.model)?.path)?;
        let device = device::memory(&self.device, device_memory.or_else(available_memory));
        let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
        let memory = MemoryPlan::on_device(config, weights, &self.runner, &device)?;
        Ok(Plan { checkpoint, memory })
    }

    /// Loads the model onto its device, and starts no engine.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn load(mut self) -> Result<Loaded, Error> {
        let plan = self.settle()?;
        let runner = self.runner_of(&plan)?;
        Ok(Loaded { plan, runner })
    }

    /// Loads the model and starts serving it.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(mut self) -> Result<Model, Error> {
        let plan = self.settle()?;
        let template = self.chat_template.as_ref().or(plan.checkpoint.chat_template.as_ref());
        let template = template.map(|text| ChatTemplate::new(text)).transpose()?;
        let (tokenizer, runner) = thread::scope(|scope| {
            let tokenizer = scope.spawn(|| tokenizer(&plan.checkpoint));
            let runner = self.runner_of(&plan);
            (tokenizer.join().unwrap_or_else(|panic| resume_unwind(panic)), runner)
        });
        let (tokenizer, runner) = (Arc::new(tokenizer?), runner?);
        let template = template.map(|template| template.with_specials_of(&tokenizer));
        let vocabulary = Arc::new(TokenizerVocabulary(tokenizer.clone()));
        let service = Service::start(Engine::new(runner, vocabulary, self.engine)?)?;
        let Plan { checkpoint: Checkpoint { config, files, generation, .. }, memory: plan } = plan;
        let inner = Inner { config, files, generation, tokenizer, template, plan, device: self.device };
        Ok(Model { inner: Arc::new(inner), service })
    }

    /// Compiles the model for a device that compiles ahead, for every step within the configuration, and keeps the programs for
    /// later starts. `on_bucket` is told how many shapes are done, and how many there are.
    ///
    /// # Errors
    /// As [`Model::open`]; if the compiler refuses a program, or the device compiles nothing.
    pub fn compile(&self, on_bucket: &dyn Fn(usize, usize)) -> Result<(), Error> {
        let plan = self.plan_for(device::memory_of_compiled(&self.device, &self.options)?)?;
        let (device, options, runner) = (&self.device, &self.options, &self.runner);
        self.loading(&plan, |config, weights, on_weight| {
            let model = Loading { config, weights, runner, plan: &plan.memory, on_weight };
            device::compile(device, options, model, on_bucket)
        })
    }

    /// Takes the first device that can be opened and holds the model.
    fn settle(&mut self) -> Result<Plan, Error> {
        loop {
            match self.plan() {
                Err(error) if error.is_of_device() && !self.fallbacks.is_empty() => {
                    let next = self.fallbacks.pop_front().unwrap_or_default();
                    let device = std::mem::replace(&mut self.device, next);
                    tracing::warn!(%error, "{device} cannot serve {}; falling back to {}", self.model, self.device);
                }
                plan => return plan,
            }
        }
    }

    fn runner_of(&self, plan: &Plan) -> Result<Box<dyn Runner>, Error> {
        let packed = self.packed_cache.as_deref();
        let packed = packed.map(|directory| PackedCache::new(directory, &plan.checkpoint)).transpose()?;
        self.loading(plan, |config, weights, on_weight| {
            let model = Loading { config, weights, runner: &self.runner, plan: &plan.memory, on_weight };
            device::open(&self.device, &self.options, packed.as_ref(), model)
        })
    }

    /// Gives a plan's weights to `load`, and what tells of each that is placed.
    fn loading<T>(
        &self,
        plan: &Plan,
        load: impl FnOnce(&Config, &dyn WeightSource, &dyn Fn(usize)) -> T,
    ) -> T {
        let loaded = std::cell::Cell::new(0);
        let on_weight = |bytes: usize| {
            loaded.set(loaded.get() + bytes as u64);
            // Ranks that share layers each have the whole of some weights.
            (self.on_load)(loaded.get().min(plan.memory.weights), plan.memory.weights);
        };
        load(&plan.checkpoint.config, &*plan.checkpoint.weights, &on_weight)
    }
}

fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let mut tokenizer = match &checkpoint.tokenizer {
        TokenizerSource::Gguf(gguf) => Tokenizer::from_gguf(GgufVocab::from_metadata(&gguf.metadata)?)?,
        TokenizerSource::Json { tokenizer, config } => {
            let config = config.as_deref().map(read).transpose()?;
            Tokenizer::from_json(&read(tokenizer)?, config.as_deref())?
        }
    };
    tokenizer.add_eos_ids(&checkpoint.generation.eos_token_ids)?;
    Ok(tokenizer)
}

fn read(path: &Path) -> Result<Vec<u8>, samebits_checkpoint::Error> {
    std::fs::read(path).map_err(|source| samebits_checkpoint::Error::Io { path: path.into(), source })
}

/// The tokens of a conversation, up to the start of the assistant's turn.
fn encode_chat(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<TokenId>, ChatError> {
    let message = |message: &Message| json!({"role": message.role, "content": message.content});
    let messages: Vec<_> = messages.iter().map(message).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: true,
        now_unix_s: now,
        ..ChatInput::default()
    };
    template.encode(&input, tokenizer)
}

struct TokenizerVocabulary(Arc<Tokenizer>);

impl Vocabulary for TokenizerVocabulary {
    fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.0.token_bytes(id)
    }

    fn is_special(&self, id: TokenId) -> bool {
        self.0.is_special(id)
    }

    fn eos(&self) -> &[TokenId] {
        self.0.eos_ids()
    }
}
