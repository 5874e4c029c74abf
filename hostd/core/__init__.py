"""The host kernel's mm as a deterministic core: no I/O, clock, threads or randomness of its own.

Where to read first: ``events`` (what goes in and out, and in which order), ``page`` (the life of a guest page),
``fault`` (what an EPT violation does), ``border`` (what happens between two windows), ``host`` (the core itself).
What the kernel has in a file of mm/ is in the one of that name: ``vmscan``, ``memcontrol``, ``page_io``, ``swap_state``,
``workingset``; ``state`` is what they work on, and ``mm`` puts them together.

Transitions, drawn from the tables by ``poe diagrams``:

guest page:

    NONE      --- ZERO FILLED -----------> RESIDENT
                  mm/memory.c:do_anonymous_page
              --- ZERO FILLED BY WORKER -> CACHED
                  mm/memory.c:do_anonymous_page

    RESIDENT  --- PICKED ----------------> EVICTING
                  mm/vmscan.c:shrink_folio_list, mm/rmap.c:try_to_unmap
              --- FREED -----------------> NONE
                  mm/memory.c:zap_pte_range

    EVICTING  --- MAPPED ----------------> RESIDENT
                  mm/memory.c:do_swap_page (a swap-cache hit)
              --- FOUND BY WORKER -------> CACHED
                  mm/memory.c:do_swap_page (a swap-cache hit)
              --- WRITE SUBMITTED -------> WRITEBACK
                  mm/vmscan.c:pageout, mm/page_io.c:swap_writeout
              --- DROPPED ---------------> SWAPPED
                  mm/vmscan.c:__remove_mapping (PAGE_CLEAN)

    WRITEBACK --- MAPPED ----------------> RESIDENT
                  mm/memory.c:do_swap_page (a swap-cache hit)
              --- FOUND BY WORKER -------> CACHED
                  mm/memory.c:do_swap_page (a swap-cache hit)
              --- WRITE DONE ------------> CACHED
                  mm/page_io.c:end_swap_bio_write, mm/swap.c:folio_rotate_reclaimable
              --- WRITE FAILED ----------> CACHED
                  mm/page_io.c:end_swap_bio_write (bi_status)
              --- WRITE PUT OFF ---------> EVICTING
                  mm/page_io.c:end_swap_bio_write (bi_status)

    CACHED    --- MAPPED ----------------> RESIDENT
                  mm/memory.c:do_swap_page
              --- PICKED ----------------> EVICTING
                  mm/vmscan.c:shrink_folio_list (dirty again)
              --- RELEASED --------------> SWAPPED
                  mm/vmscan.c:__remove_mapping
              --- FREED -----------------> NONE
                  mm/memory.c:zap_pte_range

    READING   --- READ DONE -------------> CACHED
                  mm/page_io.c:__end_swap_bio_read
              --- READ FAILED -----------> CACHED
                  mm/page_io.c:__end_swap_bio_read (bi_status)

    SWAPPED   --- READ SUBMITTED --------> READING
                  mm/swap_state.c:__read_swap_cache_async, mm/page_io.c:swap_read_folio
              --- FREED -----------------> NONE
                  mm/memory.c:zap_pte_range
"""
