//! Memory for numbers that every step reads from front to back.

use std::{fmt, marker::PhantomData, ops, slice};

use memmap2::MmapMut;

use super::element::Element;

/// A table of numbers in memory of its own: on large pages where the system has them, since looking
/// up the addresses of small ones takes a quarter of the time of reading them.
pub(crate) struct Pages<E> {
    map: MmapMut,
    count: usize,
    element: PhantomData<E>,
}

impl<E: Element> Pages<E> {
    /// `count` zeros.
    ///
    /// # Panics
    /// There is no memory, as for any other allocation.
    pub(crate) fn zeroed(count: usize) -> Self {
        let bytes = (count * size_of::<E>()).max(1);
        let map = MmapMut::map_anon(bytes).expect("memory for the weights of a network");
        // A wish, which not every system grants.
        #[cfg(target_os = "linux")]
        let _granted = map.advise(memmap2::Advice::HugePage);
        Self { map, count, element: PhantomData }
    }
}

impl<E: Element> ops::Deref for Pages<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: the map holds this many numbers, begins at a page, and any bits are numbers.
        unsafe { slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
    }
}

impl<E: Element> ops::DerefMut for Pages<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.count) }
    }
}

impl<E> fmt::Debug for Pages<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({})", self.count)
    }
}
