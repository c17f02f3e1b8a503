# Everything is built without cgo, with one set of tags; only the race detector needs a C compiler.
SHELL = /bin/bash
.SHELLFLAGS = -eu -o pipefail -c
.DEFAULT_GOAL = help
export CGO_ENABLED = 0

# The go command: GO=..., the one in PATH, or the one that deps-build puts into .tools. Looked for when first needed.
ifeq ($(origin GO),undefined)
FIND_GO = scripts/find-go
GO = $(eval GO := $(shell $(FIND_GO)))$(GO)
else
FIND_GO = command -v '$(GO)'
endif
WITH_GO = $$(dirname "$$(command -v '$(GO)')"):$$PATH
TAGS = containers_image_openpgp
# With cgo, what the library would link against C libraries for goes too.
RACE_TAGS = $(TAGS) exclude_graphdriver_btrfs exclude_graphdriver_devicemapper
VERSION = 0.1.0
LDFLAGS = -s -w -X main.version=$(VERSION)
BUILD = build -trimpath -buildvcs=false -tags '$(TAGS)' -ldflags '$(LDFLAGS)'
BIN = bin/ostree-image
ARCHES = amd64 arm64 arm riscv64

PREFIX = /usr/local
DESTDIR =
# For the Go tests of one package; go's own 10 minutes are short for a slow machine.
TIMEOUT = 40m
FUZZTIME = 60s
BENCH =
TRIAL =
JOBS = $(shell nproc)

# Names of Debian packages. What is there already is left alone, whoever put it there.
PACKAGES_RUN = ostree tar gzip
PACKAGES_TEST = $(PACKAGES_RUN) $(PACKAGES_LINT) bats parallel mmdebstrap debian-archive-keyring umoci skopeo docker-registry apache2-utils \
	openssl python3 jq zstd bzip2 xz-utils attr libcap2-bin gnupg file faketime dash mount passwd procps util-linux bc buildah busybox tar-split strace e2fsprogs xfsprogs gcc libc6-dev
PACKAGES_LINT = shellcheck
GOLANGCI_LINT = .tools/bin/golangci-lint
GOLANGCI_LINT_VERSION = v2.15.0
NFPM = .tools/bin/nfpm
NFPM_VERSION = v2.45.2
SHELL_FILES = .ci/run scripts/apt-install scripts/count-tests scripts/demo scripts/find-go scripts/get-go scripts/packages scripts/test-packages scripts/dist

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: deps-build ## build bin/ostree-image
	$(GO) $(BUILD) -o $(BIN) .

build-all: $(ARCHES:%=build-%) ## build bin/ostree-image-linux-ARCH for amd64, arm64, arm and riscv64

build-%: deps-build
	GOOS=linux GOARCH=$* $(GO) $(BUILD) -o $(BIN)-linux-$* .

test: deps-test build ## install what the tests need, and run them all
	@failed=; \
	$(MAKE) --no-print-directory unit || failed="$$failed unit"; \
	$(MAKE) --no-print-directory integration || failed="$$failed integration"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

unit: deps-build ## run the Go tests, with the race detector where there is a C compiler
	@if echo '#include <stdlib.h>' | $${CC:-gcc} -E - >/dev/null 2>&1; then \
		$(MAKE) --no-print-directory race; \
	else \
		set -x; $(GO) test -v -count=1 -timeout $(TIMEOUT) -tags '$(TAGS)' ./... | scripts/count-tests; \
	fi

race: export CGO_ENABLED = 1
# SQLite, which only the library's cache uses, takes half the time to compile.
race: export CGO_CFLAGS ?= -O0 -g0
race: deps-build ## run the Go tests with the race detector
	$(GO) test -race -v -count=1 -timeout $(TIMEOUT) -tags '$(RACE_TAGS)' ./... | scripts/count-tests

integration: build ## run the bats tests, as many at a time as there are processors
	@export PATH="$(WITH_GO)"; jobs=; if parallel --version 2>/dev/null | grep -q '^GNU'; then jobs='--jobs $(JOBS)'; fi; \
	if [ -t 1 ]; then set -x; bats $$jobs integration/*.bats; \
	else set -x; bats $$jobs --formatter tap integration/*.bats | scripts/count-tests; fi

test-hostile: deps-test build ## import the hostile images in full size, with the limits that the program has
	OSTREE_IMAGE_LONG=1 bats integration/160-hostile.bats

fuzz: deps-build ## run each fuzz test for FUZZTIME (60s), and try 300 forgeries, 1,000 layers and 2,000 stacks (as root)
	@for package in $$($(GO) list -tags '$(TAGS)' ./...); do \
		for target in $$($(GO) test -tags '$(TAGS)' -list '^Fuzz' "$$package" | grep '^Fuzz' || :); do \
			(set -x; $(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$$target\$$" -fuzztime '$(FUZZTIME)' "$$package"); \
		done; \
	done
	OSTREE_IMAGE_FORGERIES=300 $(GO) test -v -timeout 2h -tags '$(TAGS)' -run '^TestForgeriesAtRandom$$' .
	OSTREE_IMAGE_LAYERS=1000 $(GO) test -v -timeout 2h -tags '$(TAGS)' -run '^TestRandomLayers$$' .
	OSTREE_IMAGE_STACKS=2000 $(GO) test -v -timeout 4h -tags '$(TAGS)' -run '^TestSearchStacks$$' .

# The long forms of what integration/2*.bats try in short.
test-crash: deps-test build ## kill runs, cut the power, fill disks, have system calls fail (as root; TRIAL='--seed 1')
	python3 integration/crash.py --program=$(BIN) $(TRIAL)
	unshare --mount python3 integration/powercut.py --program=$(BIN) $(TRIAL)
	python3 integration/inject.py --program=$(BIN) $(TRIAL)
	unshare --mount python3 integration/disk.py --program=$(BIN) $(TRIAL)

test-stress: deps-test build ## copy, remove and prune side by side for 5 minutes (as root; TRIAL='--seconds 600')
	python3 integration/stress.py --program=$(BIN) $(TRIAL)

bench: deps-test build ## measure imports, exports and checkouts (as root; BENCH='-rounds 3 -only debian')
	$(GO) run -tags '$(TAGS)' ./bench $(BENCH)

lint: deps-build deps-lint ## check the source: golangci-lint (gofumpt and goimports with it), go vet, shellcheck
	$(GO) vet -tags '$(TAGS)' ./...
	PATH="$(WITH_GO)" $(GOLANGCI_LINT) run --build-tags '$(TAGS)'
	shellcheck $(SHELL_FILES)
	shellcheck --exclude=SC2034,SC2154 integration/*.bash integration/*.bats # variables that bats sets and helpers read

check: lint ## lint, and compile every test without running any
	$(GO) test -c -o /dev/null -tags '$(TAGS)' ./...
	bats --count integration/*.bats

demo: deps-build ## import a Debian base image, or IMAGE=docker://..., into a repository in .demo
	@scripts/apt-install $(PACKAGES_RUN)
	@$(MAKE) --no-print-directory build
	@scripts/demo

picture: demo ## draw the README's picture of a run anew
	scripts/picture

man: build ## write the man pages into bin/man
	rm -rf bin/man
	$(BIN) man bin/man

install: ## install below DESTDIR and PREFIX (/usr/local) what build has built, with man pages and completions
	install -D -m 755 $(BIN) '$(DESTDIR)$(PREFIX)/bin/ostree-image'
	install -d '$(DESTDIR)$(PREFIX)/share/man/man1' '$(DESTDIR)$(PREFIX)/share/bash-completion/completions' \
		'$(DESTDIR)$(PREFIX)/share/zsh/site-functions' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	$(BIN) man '$(DESTDIR)$(PREFIX)/share/man/man1'
	$(BIN) completion bash >'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/ostree-image'
	$(BIN) completion zsh >'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_ostree-image'
	$(BIN) completion fish >'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ostree-image.fish'

packages: build build-all deps-nfpm ## make .deb, .rpm and .apk in bin/packages
	scripts/packages $(NFPM) $(VERSION) $(ARCHES)

test-packages: deps-test packages ## install, try and remove the .deb in fresh chroots of Debian 12 and 13 (as root)
	scripts/test-packages

dist: build build-all ## make archives, SHA256SUMS and SPDX lists in bin/dist
	scripts/dist '$(GO)' $(VERSION) $(ARCHES)

clean: ## remove what was built, downloaded and imported here
	rm -rf bin .build .demo .tools

deps-build: ## get a go command that is new enough, if there is none
	@$(FIND_GO) >/dev/null || scripts/get-go

deps-test: deps-build ## install what the tests run
	@scripts/apt-install $(PACKAGES_TEST)

deps-nfpm: deps-build
	@[ -x $(NFPM) ] || (set -x; GOBIN='$(CURDIR)/.tools/bin' $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION))

deps-lint: deps-build
	@scripts/apt-install $(PACKAGES_LINT)
	@$(GOLANGCI_LINT) version --short 2>/dev/null | grep -qx '$(GOLANGCI_LINT_VERSION:v%=%)' || \
		(set -x; GOBIN='$(CURDIR)/.tools/bin' $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION))

.PHONY: help build build-all test unit race integration fuzz test-hostile test-crash test-stress bench lint check demo picture man install packages test-packages dist clean deps-build deps-test deps-nfpm deps-lint
