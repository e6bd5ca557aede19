use std::os::fd::OwnedFd;

use super::*;
use crate::error::ErrorKind;

fn exported(region: &Region, access: Access) -> (RegionTicket, OwnedFd) {
    let Export { ticket, fd } = region.export(access).expect("exports");
    (ticket, fd.expect("shared memory has a descriptor"))
}

#[test]
fn sizes_are_whole_pages_and_never_none() {
    assert_eq!(Region::heap(1).expect("memory").len(), PAGE_BYTES);
    assert_eq!(Region::shared("sizes", PAGE_BYTES + 1).expect("memory").len(), 2 * PAGE_BYTES);
    assert!(matches!(Region::heap(0), Err(Error::Empty)));
    assert!(matches!(Region::shared("sizes", usize::MAX), Err(Error::OutOfBounds { .. })));
    assert_eq!(Region::heap(1).expect("memory").whole().raw().ptr as usize % PAGE_BYTES, 0);
}

#[test]
fn windows_keep_to_their_bounds() {
    let region = Region::heap(PAGE_BYTES).expect("memory");
    let window = region.slice(100..200).expect("inside");
    assert_eq!((window.len(), window.offset()), (100, 100));
    assert_eq!(window.slice(..=49).expect("inside").len(), 50);
    assert_eq!(window.slice(100..).expect("the empty end").len(), 0);
    assert!(matches!(window.slice(50..101), Err(Error::OutOfBounds { end: 101, len: 100, .. })));
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let reversed = window.slice(60..50);
    assert!(matches!(reversed, Err(Error::OutOfBounds { .. })));
    assert!(matches!(region.slice(..=usize::MAX), Err(Error::OutOfBounds { .. })));
    assert!(matches!(window.copy_from(&[0; 99]), Err(Error::LengthMismatch { src: 99, dst: 100 })));
}

#[test]
fn a_window_outlives_its_region() {
    let region = Region::shared("outlived", PAGE_BYTES).expect("memory");
    let window = region.slice(10..15).expect("inside");
    window.copy_from(b"hello").expect("writable");
    drop(region);
    assert_eq!(window.to_vec(), b"hello");
}

#[test]
fn an_import_sees_the_owners_bytes() {
    let region = Region::shared("shared", 3 * PAGE_BYTES).expect("memory");
    region.prefault();
    let (ticket, fd) = exported(&region, Access::ReadWrite);
    let import = Region::import(&ticket, fd, Access::ReadWrite).expect("imports");
    import.prefault();
    assert_eq!((import.id(), import.generation()), (region.id(), region.generation()));
    region.slice(5000..5003).expect("inside").copy_from(b"abc").expect("writable");
    assert_eq!(import.slice(5000..5003).expect("inside").to_vec(), b"abc");
    import.slice(..1).expect("inside").fill(7).expect("writable");
    assert_eq!(region.slice(..1).expect("inside").to_vec(), [7]);
}

#[test]
fn a_reading_grant_cannot_be_mapped_for_writing() {
    let region = Region::shared("reading", PAGE_BYTES).expect("memory");
    let (ticket, fd) = exported(&region, Access::Read);
    assert!(matches!(Region::import(&ticket, fd, Access::ReadWrite), Err(Error::Os { .. })));
    let (ticket, fd) = exported(&region, Access::Read);
    let import = Region::import(&ticket, fd, Access::Read).expect("imports");
    import.prefault();
    assert!(matches!(import.whole().fill(1), Err(Error::ReadOnly)));
    assert!(matches!(import.slice(..1).expect("inside").copy_from(&[1]), Err(Error::ReadOnly)));
}

#[test]
fn private_memory_is_not_exported() {
    let region = Region::heap(1).expect("memory");
    let error = region.export(Access::Read).expect_err("no descriptor");
    assert_eq!(error.kind(), ErrorKind::Misuse);
}

/// What a hostile owner may send instead of an honest descriptor.
mod hostile {
    use super::*;

    fn memfd(ticket: &RegionTicket, seals: SealFlags, bytes: u64) -> OwnedFd {
        let name = format!("x:{}:{}", ticket.id, ticket.generation);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(name, flags).expect("memfd");
        rustix::fs::ftruncate(&fd, bytes).expect("resize");
        rustix::fs::fcntl_add_seals(&fd, seals).expect("seal");
        fd
    }

    fn ticket() -> RegionTicket {
        Region::heap(2 * PAGE_BYTES).expect("memory").ticket()
    }

    fn import(ticket: &RegionTicket, fd: OwnedFd) -> Error {
        Region::import(ticket, fd, Access::ReadWrite).expect_err("refused")
    }

    #[test]
    fn a_descriptor_that_can_shrink_is_refused() {
        let ticket = ticket();
        for seals in [SealFlags::empty(), SealFlags::GROW, SealFlags::SHRINK] {
            let fd = memfd(&ticket, seals, ticket.bytes);
            assert!(matches!(import(&ticket, fd), Error::Unsealed { .. }));
        }
        let file = OwnedFd::from(tempfile::tempfile().expect("a plain file"));
        assert!(matches!(import(&ticket, file), Error::Unsealed { .. }));
    }

    #[test]
    fn a_descriptor_of_another_size_is_refused() {
        let ticket = ticket();
        for bytes in [0, ticket.bytes - 1, ticket.bytes + 1] {
            let fd = memfd(&ticket, SIZE_SEALS, bytes);
            assert!(matches!(import(&ticket, fd), Error::SizeMismatch { .. }));
        }
    }

    #[test]
    fn an_absurd_size_is_refused() {
        let absurd = RegionTicket { bytes: 0, ..ticket() };
        assert!(matches!(import(&absurd, memfd(&absurd, SIZE_SEALS, 0)), Error::Empty));
        let absurd = RegionTicket { bytes: 1 << 50, ..ticket() };
        let fd = memfd(&absurd, SIZE_SEALS, absurd.bytes);
        assert!(matches!(import(&absurd, fd), Error::OutOfBounds { .. }));
    }

    #[test]
    fn a_descriptor_of_another_region_is_refused() {
        let (ours, other) = (ticket(), ticket());
        let fd = memfd(&other, SIZE_SEALS, ours.bytes);
        assert!(matches!(import(&ours, fd), Error::UnknownRegion { .. }));
        let earlier = RegionTicket { generation: Generation(ours.generation.0 ^ 1), ..ours.clone() };
        let fd = memfd(&earlier, SIZE_SEALS, ours.bytes);
        assert!(matches!(import(&ours, fd), Error::WrongGeneration { .. }));
    }

    #[test]
    fn an_import_keeps_its_bytes_after_the_owner_tries_to_shrink() {
        let region = Region::shared("shrink", PAGE_BYTES).expect("memory");
        let (ticket, fd) = exported(&region, Access::ReadWrite);
        let kept = fd.try_clone().expect("duplicates");
        let import = Region::import(&ticket, fd, Access::ReadWrite).expect("imports");
        assert!(rustix::fs::ftruncate(&kept, 0).is_err());
        assert_eq!(import.whole().to_vec().len(), PAGE_BYTES);
    }
}
