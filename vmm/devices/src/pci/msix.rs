//! MSI-X (PCI Local Bus 3.0 §6.8.2): the capability's control bits, the table and the pending bits.
//!
//! Each vector is an eventfd. While the vector is enabled and not masked, the hypervisor turns signals of its eventfd
//! into interrupts without the monitor. Otherwise signals stay in the eventfd's counter, which is the pending bit. So
//! no interrupt is lost and no state is copied, whichever process signals the eventfd, and whenever.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::hypervisor::{Hypervisor, MsiVector};

/// The number that means "no vector" (virtio 1.2 §4.1.5.1.1).
pub const NO_VECTOR: u16 = 0xffff;
/// Bytes per entry of the table.
pub const MSIX_TABLE_ENTRY_LEN: u64 = 16;

const MAX_VECTORS: u16 = 2048;
/// The vector control word's mask bit.
const MASKED: u32 = 1;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    /// The route that the hypervisor has.
    route: Option<(u64, u32)>,
}

/// An entry after power-on.
const EMPTY: Entry = Entry {
    address: 0,
    data: 0,
    control: MASKED,
    route: None,
};

struct State {
    control: u16,
    entries: Vec<Entry>,
}

/// A function's MSI-X.
pub struct Msix {
    state: Mutex<State>,
    vectors: Vec<Arc<dyn MsiVector>>,
}

impl Msix {
    /// MSI-X with `count` vectors (at most 2048), disabled and with all vectors masked, as after reset.
    ///
    /// # Errors
    /// When the hypervisor does not have that many vectors.
    pub fn new(hypervisor: &dyn Hypervisor, count: u16) -> io::Result<Self> {
        let count = count.clamp(1, MAX_VECTORS);
        let vectors = (0..count).map(|_| hypervisor.msi_vector());
        Ok(Self {
            state: Mutex::new(State {
                control: 0,
                entries: vec![EMPTY; count.into()],
            }),
            vectors: vectors.collect::<io::Result<_>>()?,
        })
    }

    /// The capability's body (after id and link) and its writable bits, for a table and pending bits in BAR `bar`.
    #[must_use]
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        // At most 2048 by construction.
        let [size, size_high] = (self.vectors.len() as u16 - 1).to_le_bytes();
        let [t0, t1, t2, t3] = (table & !7 | u32::from(bar)).to_le_bytes();
        let [p0, p1, p2, p3] = (pending & !7 | u32::from(bar)).to_le_bytes();
        let writable = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes();
        ([size, size_high, t0, t1, t2, t3, p0, p1, p2, p3], writable)
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Vector `number`, whose eventfd raises the interrupt. Only this type routes it.
    #[must_use]
    pub fn vector(&self, number: u16) -> Option<Arc<dyn MsiVector>> {
        self.vectors.get(usize::from(number)).cloned()
    }

    /// Raises the interrupt, or makes it pending. A vector that does not exist raises none.
    pub fn signal(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            vector.signal();
        }
    }

    /// Sets everything to its state after power-on. Interrupts that are pending stay so, since a backend may signal at
    /// any time: a driver must expect interrupts that come for nothing.
    pub fn reset(&self) {
        self.set_control(0);
        let mut state = self.state();
        state.entries.fill(EMPTY);
    }

    /// The guest writes the capability's message control word.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state();
        let control = control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        if state.control != control {
            state.control = control;
            for number in 0..self.vectors.len() {
                self.update_route(&mut state, number);
            }
        }
    }

    /// Reads the table: aligned accesses of four or eight bytes, as the specification demands. Others read as zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !aligned(offset, data.len()) {
            return;
        }
        let state = self.state();
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact_mut(4)) {
            let entry = usize::try_from(at / MSIX_TABLE_ENTRY_LEN);
            let Some(entry) = entry.ok().and_then(|number| state.entries.get(number)) else {
                return;
            };
            let value = match at % MSIX_TABLE_ENTRY_LEN {
                0 => entry.address as u32,
                4 => (entry.address >> 32) as u32,
                8 => entry.data,
                _ => entry.control,
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Writes the table, under the same rule as [`Self::read_table`].
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !aligned(offset, data.len()) {
            return;
        }
        let mut state = self.state();
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let number = usize::try_from(at / MSIX_TABLE_ENTRY_LEN).unwrap_or(usize::MAX);
            let (Some(entry), Ok(word)) = (state.entries.get_mut(number), word.try_into()) else {
                return;
            };
            let value = u32::from_le_bytes(word);
            let (low, high) = (entry.address & 0xffff_ffff, entry.address >> 32);
            match at % MSIX_TABLE_ENTRY_LEN {
                0 => entry.address = high << 32 | u64::from(value),
                4 => entry.address = u64::from(value) << 32 | low,
                8 => entry.data = value,
                _ => entry.control = value & MASKED,
            }
            self.update_route(&mut state, number);
        }
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (at, byte) in (offset..).zip(data.iter_mut()) {
            let first = at.saturating_mul(8);
            let bit = |bit: u64| u8::from(self.pending(&state, first.saturating_add(bit))) << bit;
            *byte = (0..8).map(bit).fold(0, |all, bit| all | bit);
        }
    }

    fn pending(&self, state: &State, number: u64) -> bool {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        match (state.entries.get(number), self.vectors.get(number)) {
            (Some(entry), Some(vector)) if entry.route.is_none() => vector.is_pending(),
            _ => false,
        }
    }

    /// Sets or removes the entry's route, if the hypervisor's is no longer right.
    fn update_route(&self, state: &mut State, number: usize) {
        let live = state.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE;
        let (Some(entry), Some(vector)) = (state.entries.get_mut(number), self.vectors.get(number))
        else {
            return;
        };
        let wanted = (live && entry.control & MASKED == 0).then_some((entry.address, entry.data));
        if wanted == entry.route {
            return;
        }
        match (wanted, entry.route) {
            (Some((address, data)), former) => {
                entry.route = vector.route(address, data).ok().and(wanted);
                if entry.route.is_none() && former.is_some() {
                    let _ = vector.unroute();
                }
            }
            (None, _) => {
                let _ = vector.unroute();
                entry.route = None;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::RecordingHypervisor;

    const ADDRESS: u64 = 0xfee0_1000;
    const ON: u16 = CONTROL_ENABLE;
    const HELD: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;

    fn msix(count: u16) -> (Msix, RecordingHypervisor) {
        let hypervisor = RecordingHypervisor::default();
        (Msix::new(&hypervisor, count).unwrap(), hypervisor)
    }

    fn write32(msix: &Msix, offset: u64, value: u32) {
        msix.write_table(offset, &value.to_le_bytes());
    }

    fn set(msix: &Msix, entry: u64, data: u32) {
        write32(msix, entry * 16, ADDRESS as u32);
        write32(msix, entry * 16 + 4, 0);
        write32(msix, entry * 16 + 8, data);
        write32(msix, entry * 16 + 12, 0);
    }

    fn mask(msix: &Msix, entry: u64, masked: bool) {
        write32(msix, entry * 16 + 12, masked.into());
    }

    fn pending(msix: &Msix) -> u64 {
        let mut bits = [0xff; 8];
        msix.read_pending(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn a_vector_interrupts_once_enabled_and_unmasked() {
        let (msix, hypervisor) = msix(2);
        msix.set_control(ON);
        set(&msix, 1, 0x42);

        msix.signal(1);

        assert_eq!(hypervisor.vector(1).deliver(), Some((ADDRESS, 0x42)));
        assert_eq!(hypervisor.vector(0).deliver(), None);
    }

    #[test]
    fn a_masked_vector_is_pending_until_unmasked() {
        let (msix, hypervisor) = msix(70);
        msix.set_control(ON);
        for entry in [3, 69] {
            set(&msix, entry, 7);
            mask(&msix, entry, true);
        }

        msix.signal(3);
        msix.signal(69);

        assert_eq!(pending(&msix), 1 << 3);
        let mut high = [0; 1];
        msix.read_pending(8, &mut high);
        assert_eq!(high, [1 << 5]);
        assert_eq!(hypervisor.vector(3).deliver(), None);
        mask(&msix, 3, false);
        assert_eq!(hypervisor.vector(3).deliver(), Some((ADDRESS, 7)));
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn the_function_mask_and_the_enable_bit_hold_all_vectors() {
        for held in [HELD, 0] {
            let (msix, hypervisor) = msix(2);
            msix.set_control(held);
            set(&msix, 0, 1);
            set(&msix, 1, 2);
            msix.signal(0);
            msix.signal(1);
            assert_eq!(pending(&msix), 0b11);
            assert_eq!(hypervisor.vector(0).deliver(), None);

            msix.set_control(ON);

            assert_eq!(hypervisor.vector(0).deliver(), Some((ADDRESS, 1)));
            assert_eq!(hypervisor.vector(1).deliver(), Some((ADDRESS, 2)));
        }
    }

    #[test]
    fn a_message_may_be_changed_behind_the_mask_without_losing_the_interrupt() {
        let (msix, hypervisor) = msix(1);
        msix.set_control(ON);
        set(&msix, 0, 1);
        mask(&msix, 0, true);
        msix.signal(0);
        write32(&msix, 8, 2);
        mask(&msix, 0, false);
        assert_eq!(hypervisor.vector(0).deliver(), Some((ADDRESS, 2)));
    }

    #[test]
    fn the_hypervisor_is_called_for_changes_only() {
        let (msix, hypervisor) = msix(1);
        set(&msix, 0, 1);
        assert_eq!(*hypervisor.vector(0).changes.lock().unwrap(), 0, "off");
        msix.set_control(ON);
        msix.set_control(ON);
        set(&msix, 0, 1);
        assert_eq!(*hypervisor.vector(0).changes.lock().unwrap(), 1);
    }

    #[test]
    fn a_message_the_hypervisor_refuses_stays_pending_until_mended() {
        let (msix, hypervisor) = msix(1);
        msix.set_control(ON);
        write32(&msix, 0, 0x1000);
        mask(&msix, 0, false);
        msix.signal(0);
        assert_eq!(pending(&msix), 1);
        write32(&msix, 0, ADDRESS as u32);
        assert_eq!(hypervisor.vector(0).deliver(), Some((ADDRESS, 0)));
    }

    #[test]
    fn the_table_reads_back_and_starts_masked() {
        let (msix, _) = msix(2);
        let mut entry = [0; 8];
        msix.read_table(24, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 1 << 32);
        msix.write_table(16, &0x1122_3344_5566_7788_u64.to_le_bytes());
        msix.read_table(16, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 0x1122_3344_5566_7788);
    }

    #[test]
    fn after_a_reset_all_is_masked_and_off() {
        let (msix, hypervisor) = msix(2);
        msix.set_control(ON);
        set(&msix, 1, 0x42);

        msix.reset();

        msix.signal(1);
        assert_eq!(hypervisor.vector(1).deliver(), None);
        let mut entry = [0xff; 8];
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0; 8]);
        msix.set_control(ON);
        assert_eq!(hypervisor.vector(1).deliver(), None, "masked");
    }

    proptest! {
        /// Whatever the guest does to table and control, a signal is either delivered or pending, never gone.
        #[test]
        fn no_interrupt_is_lost(
            steps in prop::collection::vec(
                prop_oneof![
                    (0..48_u64, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(o, d)| (Some((o, d)), 0)),
                    (0..3_u64, 0..2_u32).prop_map(|(e, m)| (Some((e * 16 + 12, m.to_le_bytes().to_vec())), 0)),
                    Just((Some((0, (ADDRESS as u32).to_le_bytes().to_vec())), 0)),
                    any::<u16>().prop_map(|control| (None, control)),
                ], 0..40)
        ) {
            let (msix, hypervisor) = msix(3);
            let vector = hypervisor.vector(0);
            for (table, control) in steps {
                msix.signal(0);
                match table {
                    Some((offset, data)) => msix.write_table(offset, &data),
                    None => msix.set_control(control),
                }
                prop_assert!(vector.deliver().is_some() ^ (pending(&msix) & 1 == 1));
                prop_assert_eq!(pending(&msix) & !1, 0);
                // Whatever is pending is taken as seen, so that the next round proves the next signal.
                let _ = vector.eventfd().read();
            }
        }
    }
}
