"""What several families of rules rest on."""

DOCUMENT = "Documentation/core-api/pin_user_pages.rst"
FSDAX = (
    'Linux commit 52650c8b466b ("mm/gup: remove the vma allocation from gup_longterm_locked()"), '
    "v5.11: check_vma_flags() refuses FOLL_LONGTERM on an fsdax VMA; GUP-fast takes no pin there"
)
MIGRATE = (
    'Linux commit d1e153fea2a8 ("mm/gup: migrate pinned pages out of movable zone"), v5.13: '
    "a batch is pinned, unpinned, migrated and pinned again"
)
WRITE_FILE = (
    'Linux commit 8ac268436e6d ("mm/gup: disallow FOLL_LONGTERM GUP-nonfast writing to file-backed '
    'mappings"), v6.5; a6e79df92e4a ("mm/gup: disallow FOLL_LONGTERM GUP-fast writing to '
    'file-backed mappings"), v6.5: GUP-fast takes a pin, finds the file, and gives it back'
)
UNSHARE = (
    'Linux commit 84209e87c696 ("mm/gup: reliable R/O long-term pinning in COW mappings"), v6.2: '
    "GUP-fast takes a pin, finds the page to be unshared or not writable, and gives it back"
)
ZERO_PAGE = 'Linux commit c8070b787519 ("mm: Don\'t pin ZERO_PAGE in pin_user_pages()"), v6.5'
NO_MEMORY = (
    "mm/gup.c, __get_user_pages(): EFAULT where no VMA is, or where the fault gives SIGBUS; what "
    "lies before it has been taken by GUP-fast and is given back"
)
PROTECTION = "mm/gup.c, check_vma_flags(): EFAULT when VM_WRITE or VM_READ is missing"
SECRET = (
    'Linux commit 1507f51255c9 ("mm: introduce memfd_secret system call to create "secret" memory '
    'areas"), v5.14: check_vma_flags() refuses it, and GUP-fast gives its pin back'
)
DEVDAX = (
    'Linux commit fd2825b0760a ("mm/gup: remove pXX_devmap usage from get_user_pages()"), v6.17: '
    "GUP-fast takes the pages of a huge devdax mapping, finds a file that is not shmem, gives them "
    "back, and the slow path, which finds no dirty tracking, takes them again"
)
