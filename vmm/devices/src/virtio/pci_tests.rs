use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::pci::NO_VECTOR;
use crate::virtio::F_VERSION_1;

#[path = "pci_fixture.rs"]
mod fixture;

use fixture::{Called, FEATURES, Guest, RAM, STATUS};

const READY: [u8; 3] = [1, 3, 0xb];

#[test]
fn a_driver_finds_all_parts_by_the_capabilities() {
    let guest = Guest::new();
    assert_eq!(guest.config_read(0), 0x1042_1af4);
    let (mut found, mut at) = (Vec::new(), u64::from(guest.config_read(0x34) & 0xff));
    while at != 0 {
        let header = guest.config_read(at);
        if header & 0xff == 9 {
            let range = (guest.config_read(at + 8), guest.config_read(at + 12));
            found.push((header >> 24, guest.config_read(at + 4), range));
        } else {
            let [control, table, pending] = [0, 4, 8].map(|n| guest.config_read(at + n));
            assert_eq!((header & 0xff, control >> 16), (0x11, 2), "three vectors");
            assert_eq!((table, pending), (0x8000, 0x4000));
        }
        at = (header >> 8 & 0xff).into();
    }
    let expected = [
        (1, 0, (0, 0x38)),
        (2, 0, (0x3000, 8)),
        (3, 0, (0x1000, 1)),
        (4, 0, (0x2000, 0x1000)),
        (5, 0, (0, 0)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_driver_that_does_everything_right_gets_a_live_device() {
    let guest = Guest::new();
    assert_eq!(guest.read(0x12), 2_u16.to_le_bytes());

    guest.boot();

    assert_eq!(guest.status(), 0xf);
    let queues = vec![(0, 16, 0x1_0000), (1, 16, 0x2_0000)];
    assert_eq!(guest.take_calls(), [Called::Active(FEATURES, queues)]);
}

#[test]
fn features_come_in_words_and_only_what_is_agreed_on_counts() {
    let guest = Guest::new();
    for (select, expected) in [(0, 0b1011_u32), (1, 1), (2, 0), (u32::MAX, 0)] {
        guest.write(0, &select.to_le_bytes());
        assert_eq!(guest.read(4), expected.to_le_bytes(), "word {select}");
    }
    guest.negotiate(F_VERSION_1 | 0b10);
    guest.write(8, &0_u32.to_le_bytes());
    guest.write(0xc, &0b1011_u32.to_le_bytes());
    guest.set_status(0xf);
    assert_eq!(
        guest.take_calls(),
        [Called::Active(F_VERSION_1 | 0b10, vec![])]
    );
}

#[test]
fn features_ok_is_refused_when_the_features_are_not() {
    for wrong in [0, 0b1011, F_VERSION_1 | 0b100, FEATURES | 1 << 63] {
        let guest = Guest::new();
        guest.negotiate(wrong);
        assert_eq!(guest.status(), 3, "{wrong:#x}");
        guest.set_status(0xf);
        assert_eq!(guest.status(), 3, "not live without features");
        assert_eq!(guest.take_calls(), []);
    }
}

#[test]
fn a_queue_outside_ram_makes_the_device_need_a_reset() {
    for place in [RAM as u64 - 0x1000, 1 << 40, !0xfff, 0x1_0008] {
        let guest = Guest::new();
        guest.enable_msix();
        guest.write(0x10, &0_u16.to_le_bytes());
        guest.negotiate(FEATURES);
        guest.set_up_queue(0, 1, place.wrapping_sub(0x2000));
        guest.set_up_queue(1, 1, place);
        guest.set_status(0xf);

        assert_eq!(guest.status(), 0x4f, "{place:#x}");
        assert_eq!(guest.take_calls(), []);
        assert!(guest.hypervisor.vector(0).deliver().is_some());
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
    }
}

#[test]
fn reset_takes_the_queues_back_and_starts_over() {
    let guest = Guest::new();
    guest.boot();
    guest.take_calls();

    guest.set_status(0);

    assert_eq!(guest.take_calls(), [Called::Reset]);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.read(0x18), 256_u16.to_le_bytes());
    assert_eq!(guest.read(0x1a), NO_VECTOR.to_le_bytes());
    assert_eq!(guest.read(0x20), [0; 8]);
    guest.boot();
    assert_eq!(guest.take_calls().len(), 1);
}

#[test]
fn a_machine_s_reset_is_a_power_on() {
    let guest = Guest::new();
    let bar = [guest.config_read(0x10), guest.config_read(0x14)];
    guest.boot();
    guest.enable_msix();
    guest.config_write(0x10, &(guest.bar as u32 + 0x2_0000).to_le_bytes());
    guest.take_calls();

    Lifecycle::reset(&*guest.function);
    guest.root.reset();

    assert_eq!(guest.take_calls(), [Called::Reset]);
    assert!(guest.hypervisor.doorbell_addresses().is_empty());
    assert_eq!([guest.config_read(0x10), guest.config_read(0x14)], bar);
    assert_eq!(guest.config_read(4) & 0xffff, 0, "decoding is off");
    guest.device.queues.lock().unwrap()[0].call.signal();
    assert_eq!(guest.hypervisor.vector(1).deliver(), None);
    guest.config_write(4, &[6]);
    assert_eq!(guest.status(), 0);
    guest.boot();
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_removed_function_has_neither_doorbells_nor_interrupts() {
    let guest = Guest::new();
    guest.boot();
    guest.enable_msix();

    guest.function.remove();

    assert!(guest.hypervisor.doorbell_addresses().is_empty());
    guest.device.queues.lock().unwrap()[0].call.signal();
    assert_eq!(guest.hypervisor.vector(1).deliver(), None);
}

#[test]
fn a_live_queue_does_not_move_and_is_not_started_twice() {
    let guest = Guest::new();
    guest.boot();
    guest.take_calls();
    guest.set_up_queue(0, 1, 0x5_0000);
    guest.set_status(0xf);
    assert_eq!(guest.read(0x20), 0x1_0000_u64.to_le_bytes());
    assert_eq!(
        guest.take_calls(),
        [Called::Call(0)],
        "only the vector was set anew"
    );
}

#[test]
fn each_queue_has_a_doorbell_that_follows_the_bar() {
    let guest = Guest::new();
    let doorbells = |bar| vec![bar + NOTIFY.start, bar + NOTIFY.start + 4];
    assert_eq!(guest.hypervisor.doorbell_addresses(), doorbells(guest.bar));
    guest.boot();
    let kicks: Vec<_> = guest
        .device
        .queues
        .lock()
        .unwrap()
        .iter()
        .map(|q| q.kick.clone())
        .collect();

    assert!(
        guest
            .hypervisor
            .write_doorbell(guest.bar + NOTIFY.start + 4)
    );
    assert!(kicks[0].read().is_err());
    assert_eq!(kicks[1].read().unwrap(), 1);

    guest.config_write(0x10, &(guest.bar as u32 + 0x2_0000).to_le_bytes());
    assert_eq!(
        guest.hypervisor.doorbell_addresses(),
        doorbells(guest.bar + 0x2_0000)
    );
    guest.config_write(4, &[0]);
    assert!(guest.hypervisor.doorbell_addresses().is_empty());
}

#[test]
fn a_doorbell_the_hypervisor_refuses_has_the_same_effect() {
    let guest = Guest::new();
    guest.boot();
    guest.take_calls();
    guest.write(NOTIFY.start + 4, &1_u16.to_le_bytes());
    assert_eq!(guest.take_calls(), [Called::Kick(1)]);
}

#[test]
fn a_reset_that_takes_its_time_is_waited_for_by_the_driver_alone() {
    let guest = Guest::new();
    guest.boot();
    guest.take_calls();
    guest.device.busy.store(true, Ordering::Release);

    guest.set_status(0);
    assert_eq!(guest.status(), 0xf, "the device has the queues yet");
    guest.set_status(1);
    guest.set_status(0);
    guest.write(0x1a, &0_u16.to_le_bytes());
    guest.device.busy.store(false, Ordering::Release);

    assert_eq!(guest.status(), 0);
    assert_eq!(guest.take_calls(), [Called::Reset]);
    guest.boot();
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn a_used_buffer_interrupts_by_the_queues_own_vector() {
    let guest = Guest::new();
    guest.enable_msix();
    guest.boot();
    let call = guest.device.queues.lock().unwrap()[1].call.clone();
    call.eventfd().write(1).unwrap();
    assert_eq!(guest.hypervisor.vector(2).deliver(), Some((0xfee0_0000, 2)));
}

#[test]
fn a_queue_may_have_no_vector_or_another_one_later() {
    let guest = Guest::new();
    guest.enable_msix();
    guest.negotiate(FEATURES);
    guest.set_up_queue(0, 3, 0x1_0000);
    assert_eq!(
        guest.read(0x1a),
        NO_VECTOR.to_le_bytes(),
        "there is no vector 3"
    );
    guest.set_status(0xf);
    guest.device.queues.lock().unwrap()[0]
        .call
        .eventfd()
        .write(1)
        .unwrap();
    for vector in 0..3 {
        assert_eq!(guest.hypervisor.vector(vector).deliver(), None);
    }

    guest.write(0x1a, &1_u16.to_le_bytes());

    guest.device.queues.lock().unwrap()[0]
        .call
        .eventfd()
        .write(1)
        .unwrap();
    assert_eq!(guest.hypervisor.vector(1).deliver(), Some((0xfee0_0000, 1)));
}

#[test]
fn a_configuration_change_shows_in_interrupt_isr_and_generation() {
    let guest = Guest::new();
    guest.enable_msix();
    guest.boot();
    guest.write(0x10, &0_u16.to_le_bytes());
    let generation = guest.read::<1>(0x15);

    let events = guest.device.events.lock().unwrap().clone().unwrap();
    events.config_changed();

    assert_eq!(guest.hypervisor.vector(0).deliver(), Some((0xfee0_0000, 0)));
    assert_ne!(guest.read::<1>(0x15), generation);
    assert_eq!(guest.read::<1>(ISR.start), [2]);
    assert_eq!(guest.read::<1>(ISR.start), [0]);
}

#[test]
fn pci_cfg_data_reaches_the_bar() {
    let guest = Guest::new();
    let pci_cfg = u64::from(guest.function.offsets.pci_cfg);
    let data = u64::from(guest.function.offsets.pci_cfg_data());
    guest.config_write(pci_cfg + 4, &(STATUS as u32).to_le_bytes());
    guest.config_write(pci_cfg + 8, &1_u32.to_le_bytes());
    guest.config_write(data, &[1]);
    assert_eq!(guest.status(), 1);
    assert_eq!(guest.config_read(data), 1);

    guest.config_write(pci_cfg + 4, &(DEVICE.start as u32 + 5).to_le_bytes());
    guest.config_write(pci_cfg + 8, &4_u32.to_le_bytes());
    assert_eq!(guest.config_read(data), 0xc5c5_c5c5);
    guest.config_write(data, &[1, 2, 3, 4]);
    assert_eq!(
        *guest.device.written.lock().unwrap(),
        [(5, vec![1, 2, 3, 4])]
    );
}

proptest! {
    /// Whatever the guest does in whatever order, nothing panics, a live device has sound queues, and activations and
    /// resets alternate.
    #[test]
    fn hostile_drivers_are_survived(
        steps in prop::collection::vec(
            prop_oneof![
                (0..0x38_u64, prop::collection::vec(any::<u8>(), 0..9)),
                (any::<u16>().prop_map(u64::from), prop::collection::vec(any::<u8>(), 0..9)),
                (Just(STATUS), prop::sample::select(vec![0_u8, 1, 3, 0xb, 0xf, 0x8f]).prop_map(|s| vec![s])),
                (Just(0x0c), Just(vec![1, 0, 0, 0])),
                (Just(0x08), (0..2_u8).prop_map(|s| vec![s, 0, 0, 0])),
                (Just(0x1c), Just(vec![1, 0])),
                (Just(0x16), (0..3_u8).prop_map(|q| vec![q, 0])),
            ], 0..120),
        config in prop::collection::vec((0..0x100_u64, prop::collection::vec(any::<u8>(), 0..9)), 0..10)
    ) {
        let guest = Guest::new();
        for (offset, data) in config {
            guest.config_write(offset, &data);
            guest.config_read(offset);
        }
        for (offset, data) in steps {
            guest.function.write_bar(0, offset, &data);
            guest.function.read_bar(0, offset, &mut data.clone());
        }
        let mut active = false;
        for call in guest.take_calls() {
            match call {
                Called::Active(features, queues) => {
                    prop_assert!(!active);
                    active = true;
                    prop_assert_eq!(features & !FEATURES, 0);
                    prop_assert!(queues.iter().all(|q| q.1.is_power_of_two() && q.2 < RAM as u64));
                }
                Called::Reset => active = false,
                Called::Call(_) => prop_assert!(active),
                Called::Kick(_) => {}
            }
        }
    }
}

#[test]
fn the_usual_steps_are_in_order() {
    let guest = Guest::new();
    for status in READY.iter().take(2) {
        guest.set_status(*status);
        assert_eq!(guest.status(), *status);
    }
    guest.set_status(1);
    assert_eq!(guest.status(), 3, "bits are not taken back");
    guest.set_status(0x80);
    assert_eq!(guest.status(), 0x83);
}
