//! Carries out the phases: kills and restarts parts, asks, compares.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use hearth_proto::v1::Tier;

use super::corrupt;
use super::phase::{Broken, Phase};
use super::report::{Report, Request, Row};
use super::{Args, DemoError};
use crate::client::chat::{Answer, Chat, Question};
use crate::client::control::Control;
use crate::document::QUESTIONS;
use crate::metrics::{self, BlocksAsked};
use crate::screen::Screen;
use crate::stack::Stack;

/// How long an engine may take to hand the document's blocks to the store, and the store to disk.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the router may take to see that an engine is back.
const ROUTER_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Tokens of a block, as engines and store agree on.
const BLOCK_TOKENS: u64 = 16;

/// The stack, and what was answered first.
pub(crate) struct Play<'a> {
    args: &'a Args,
    stack: Stack,
    chat: Chat,
    http: reqwest::Client,
    screen: &'a Screen,
    document: &'a str,
    /// The first answer to each question: what all later ones have to be equal to.
    first_answers: Vec<Option<Answer>>,
    /// What engines that were killed since had counted.
    retired: BlocksAsked,
    /// Whether a block on disk was damaged.
    damaged: bool,
}

impl<'a> Play<'a> {
    /// Ready for the first phase.
    pub(crate) fn new(
        args: &'a Args,
        stack: Stack,
        document: &'a str,
        screen: &'a Screen,
    ) -> Result<Self, DemoError> {
        let chat = Chat::new(&stack.url(), &stack.settings().checkpoint.name).map_err(DemoError::Client)?;
        let first_answers = vec![None; QUESTIONS.len()];
        let retired = BlocksAsked::default();
        let http = chat.http();
        Ok(Self { args, stack, chat, http, screen, document, first_answers, retired, damaged: false })
    }

    /// All phases, in order.
    pub(crate) async fn all(&mut self, report: &mut Report) -> Result<(), DemoError> {
        for phase in Phase::ALL {
            let [what, why] = phase.explanation();
            self.screen.line(format!("\n({}) {}\n    {what}\n    {why}", phase.letter(), phase.title()))?;
            let early = self.prepare(phase, report).await?;
            let first = self.ask(phase, &[0], Some(phase.engine())).await?.remove(0);
            let others = match early {
                Some(others) => others,
                None => self.ask_others(phase).await?,
            };
            self.check(phase, &first, &others).await?;
            let line = report.add(Row::new(phase, first, others));
            self.screen.line(line)?;
        }
        let mut asked = self.retired.clone();
        for index in 0..self.stack.engines.len() {
            asked.add(&self.blocks_asked(index).await?);
        }
        report.set_blocks_asked(asked);
        Ok(())
    }

    /// Brings the stack into the state that the phase is about. Gives the other users' requests when
    /// they were sent meanwhile.
    async fn prepare(
        &mut self,
        phase: Phase,
        report: &mut Report,
    ) -> Result<Option<Vec<Request>>, DemoError> {
        match phase {
            Phase::Cold | Phase::SameEngine => {}
            Phase::OtherEngine => self.wait_for_blocks().await?,
            Phase::EngineKilled => {
                self.kill_engine(phase.engine()).await?;
                let others = self.ask_others(phase).await?;
                self.restart_engine(phase.engine()).await?;
                return Ok(Some(others));
            }
            Phase::StoreKilled => {
                self.flush().await?;
                self.kill_engine(phase.engine()).await?;
                self.stack.store.kill9();
                if self.args.corrupt {
                    self.damage(report)?;
                }
                let step =
                    self.screen.step("restarting the store node, which rebuilds its index from the disk");
                self.stack.restart_store().await?;
                drop(step);
                self.restart_engine(phase.engine()).await?;
            }
            Phase::StoreDead => {
                self.stack.store.kill9();
                self.kill_engine(phase.engine()).await?;
                self.restart_engine(phase.engine()).await?;
            }
        }
        Ok(None)
    }

    /// Asks the questions with these indices at the same time, at one engine or wherever the router
    /// sends them, and compares the answers with the first ones.
    async fn ask(
        &mut self,
        phase: Phase,
        which: &[usize],
        engine: Option<usize>,
    ) -> Result<Vec<Request>, DemoError> {
        let users: Vec<&str> = which.iter().map(|&index| QUESTIONS[index].0).collect();
        let step =
            self.screen.step(format!("{} asking", if users.len() == 1 { users[0] } else { "the others" }));
        let answers = try_join_all(which.iter().map(|&index| self.ask_one(phase, index, engine))).await?;
        drop(step);
        let mut requests = Vec::with_capacity(answers.len());
        for (&index, answer) in which.iter().zip(answers) {
            let (user, _) = QUESTIONS[index];
            let engine = self.engine_name(&answer.endpoint);
            if self.args.verbose {
                let Answer { decision, text, .. } = &answer;
                self.screen.line(format!("    {user} -> {engine} ({decision}): {text:?}"))?;
            }
            requests.push(Request::new(user, &engine, &answer));
            compare(phase, user, self.first_answers[index].get_or_insert_with(|| answer.clone()), answer)?;
        }
        Ok(requests)
    }

    async fn ask_one(&self, phase: Phase, index: usize, engine: Option<usize>) -> Result<Answer, DemoError> {
        let (user, text) = QUESTIONS[index];
        let new_tokens_max = usize::from(self.args.new_tokens);
        let question = Question { user, document: self.document, text, new_tokens_max };
        let pin = engine.map(|index| self.stack.engines[index].address.http.as_str());
        let request_error =
            |source| DemoError::Request { phase: phase.letter(), user: user.to_owned(), source };
        self.chat.ask(&question, pin).await.map_err(request_error)
    }

    async fn ask_others(&mut self, phase: Phase) -> Result<Vec<Request>, DemoError> {
        let engine = phase.keeps_to_engine().then_some(phase.engine());
        self.ask(phase, &[1, 2], engine).await
    }

    async fn check(&self, phase: Phase, first: &Request, others: &[Request]) -> Result<(), DemoError> {
        let broken = |broken| DemoError::Broken { phase: phase.letter(), broken };
        phase.check_first(first.usage(), self.damaged).map_err(broken)?;
        for other in others {
            phase.check_other(other.usage()).map_err(broken)?;
        }
        if phase == Phase::StoreKilled && self.damaged {
            let counted = self.blocks_asked(phase.engine()).await?.misses_for("corrupt");
            if counted == 0 {
                return Err(broken(Broken::NotCounted));
            }
            let counter = r#"hearth_blocks_asked_total{result="miss",reason="corrupt"}"#;
            self.screen.line(format!("    the damaged block was noticed: {counter} {counted}"))?;
        }
        Ok(())
    }

    /// Waits until the store holds the prompt of the first question.
    async fn wait_for_blocks(&self) -> Result<(), DemoError> {
        let step = self.screen.step("waiting until the store node has the blocks");
        let prompt_tokens = self.first_answers[0].as_ref().map_or(0, |answer| answer.usage.prompt_tokens);
        let blocks = prompt_tokens / BLOCK_TOKENS;
        let mut control = Control::connect(&self.stack.store.address.grpc).await?;
        let start = Instant::now();
        loop {
            let held = control.blocks(Tier::Pinned).await?;
            if held >= blocks {
                drop(step);
                return Ok(());
            }
            if start.elapsed() > WRITE_PATIENCE {
                return Err(DemoError::NotWritten { held, blocks, seconds: WRITE_PATIENCE.as_secs() });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn flush(&self) -> Result<(), DemoError> {
        let step = self.screen.step("waiting until all blocks are on NVMe");
        let mut control = Control::connect(&self.stack.store.address.grpc).await?;
        control.flush(WRITE_PATIENCE).await?;
        let blocks = control.blocks(Tier::Nvme).await?;
        drop(step);
        self.screen.line(format!("    first it put all its blocks on NVMe: {blocks}"))?;
        Ok(())
    }

    fn damage(&mut self, report: &mut Report) -> Result<(), DemoError> {
        let prompt_tokens = self.first_answers[0].as_ref().map_or(0, |answer| answer.usage.prompt_tokens);
        let block = u32::try_from(prompt_tokens / BLOCK_TOKENS * 3 / 4).unwrap_or(u32::MAX);
        let damage = corrupt::damage(&self.stack.settings().dirs.store(), block)?;
        self.damaged = true;
        let file = damage.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.screen.line(format!("    flipped bytes of block {block} of the document in {file}"))?;
        report.add_damage(damage);
        Ok(())
    }

    async fn kill_engine(&mut self, index: usize) -> Result<(), DemoError> {
        self.retired.add(&self.blocks_asked(index).await?);
        self.stack.engines[index].kill9();
        Ok(())
    }

    async fn restart_engine(&mut self, index: usize) -> Result<(), DemoError> {
        let step = self.screen.step(format!("restarting {}", self.stack.engines[index].name()));
        self.stack.restart_engine(index).await?;
        let address = &self.stack.engines[index].address.http;
        let start = Instant::now();
        // The router finds out by asking the engine from time to time.
        while !metrics::sees_engine(
            &self.metrics("the router", &self.stack.router.address.http).await?,
            address,
        ) {
            if start.elapsed() > ROUTER_PATIENCE {
                return Err(DemoError::NotSeen { engine: self.stack.engines[index].name().to_owned() });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        drop(step);
        Ok(())
    }

    async fn blocks_asked(&self, index: usize) -> Result<BlocksAsked, DemoError> {
        let engine = &self.stack.engines[index];
        Ok(BlocksAsked::parse(&self.metrics(engine.name(), &engine.address.http).await?))
    }

    async fn metrics(&self, part: &str, address: &str) -> Result<String, DemoError> {
        let metrics_error = |source| DemoError::Metrics { part: part.to_owned(), source };
        let response = self.http.get(format!("http://{address}/metrics")).send().await;
        let response = response.and_then(reqwest::Response::error_for_status).map_err(metrics_error)?;
        response.text().await.map_err(metrics_error)
    }

    /// The engine with the address that the router gave; the address when there is none.
    fn engine_name(&self, endpoint: &str) -> String {
        let engine = self.stack.engines.iter().find(|engine| endpoint.ends_with(&engine.address.http));
        engine.map_or_else(|| endpoint.to_owned(), |engine| engine.name().to_owned())
    }
}

fn compare(phase: Phase, user: &str, first: &Answer, now: Answer) -> Result<(), DemoError> {
    let (first_tokens, now_tokens) = (first.usage.completion_tokens, now.usage.completion_tokens);
    if first.text == now.text && first_tokens == now_tokens {
        return Ok(());
    }
    Err(DemoError::Differs {
        phase: phase.letter(),
        user: user.to_owned(),
        first: first.text.clone(),
        first_tokens,
        now: now.text,
        now_tokens,
    })
}
