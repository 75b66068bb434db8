//! The lives of a stepped machine's CPUs: what begins on another stack when a CPU is started, and is put back before the
//! next execution.
//!
//! What a reset CPU left on its stack stays there until the end of the execution, because others may refer to it. Each
//! life of each CPU has a stack of its own that it has in every execution, so that what lives there has the same name.

use smpcall_machine::Cpu;

use super::Stepper;
use crate::coroutine::CpuCoroutine;
use crate::explorer::footprint::Use;
use crate::places::irr_place;
use crate::processor::Anew;

/// What a started CPU does: it is told which it is, and the page of the start-up message.
pub(super) type StartUpProgram<'p> = Box<dyn Fn(Cpu, u8) + 'p>;

/// The lives that began in this execution, and what earlier executions left for the next ones.
#[derive(Default)]
pub(super) struct Lives {
    /// In the order in which they ended: the CPU, and what it was doing.
    ended: Vec<(usize, CpuCoroutine)>,
    /// By life (from the second on) and CPU.
    kept: Vec<Option<CpuCoroutine>>,
}

impl<'p> Stepper<'p> {
    /// What a CPU does that a start-up message has started; see [`World::on_start_up`](crate::World::on_start_up). To be set
    /// before the [`start`](Self::start).
    ///
    /// # Panics
    /// If there is one already.
    pub fn on_start_up(&mut self, program: impl Fn(Cpu, u8) + 'p) {
        assert!(self.start_up.is_none(), "the machine has a start-up program");
        self.start_up = Some(Box::new(program));
    }

    /// How often the boot CPU was sent an INIT since the start.
    pub fn boot_cpu_inits(&self) -> u64 {
        self.with(|machine| machine.boot_cpu_inits)
    }

    /// Gives a CPU that was sent a start-up message its next life. It is at its first operation when it is resumed.
    ///
    /// # Panics
    /// If there is no start-up program.
    #[cold]
    pub(super) fn begin_life(&mut self, cpu: usize) {
        let anew = self.with(|machine| machine.cpus[cpu].anew);
        let Some(Anew::StartUp { image, page }) = anew else { return };
        let program = self.start_up.as_deref().map(core::ptr::from_ref);
        let program = program.unwrap_or_else(|| {
            panic!("CPU {cpu} was sent a start-up message, and there is no start-up program")
        });
        // SAFETY: the box lives in `self.start_up`, which is never changed once it is set and outlives the coroutines.
        let program = move || unsafe { (*program)(Cpu::new(cpu as u32), page) };
        let place = self.lives.ended.iter().filter(|(of, _)| *of == cpu).count() * self.cpus() + cpu;
        if self.lives.kept.len() <= place {
            self.lives.kept.resize_with(place + 1, || None);
        }
        let state = self.state.shared();
        let life = match self.lives.kept[place].take() {
            Some(mut kept) => {
                // SAFETY: what it did belongs to an execution that is over: promised to `begin_again`. As to the program, see
                // above.
                unsafe { kept.restart(state, cpu, Some(program)) };
                kept
            }
            None => {
                // SAFETY: the state and the program are dropped after the coroutines.
                unsafe { CpuCoroutine::new(state, cpu, Some(program)) }
            }
        };
        let range = life.stack_range();
        let life_number = place + self.cpus();
        self.with(|machine| {
            machine.begin_anew(cpu, image);
            machine.explored.footprint.add(irr_place(cpu), Use::Write);
            let stacks = &mut machine.explored.places.stacks;
            if stacks.len() <= life_number {
                stacks.resize(life_number + 1, (0, 0));
            }
            stacks[life_number] = range;
        });
        let before = core::mem::replace(&mut self.coroutines[cpu], life);
        self.lives.ended.push((cpu, before));
    }

    /// Before the next execution: every CPU is in its first life.
    pub(super) fn forget_lives(&mut self) {
        while let Some((cpu, before)) = self.lives.ended.pop() {
            let life = core::mem::replace(&mut self.coroutines[cpu], before);
            let place = self.lives.ended.iter().filter(|(of, _)| *of == cpu).count() * self.cpus() + cpu;
            self.lives.kept[place] = Some(life);
        }
    }
}
