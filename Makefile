# Everything is built without cgo, with one set of tags.
export CGO_ENABLED = 0
GO ?= go
TAGS = containers_image_openpgp
VERSION = 0.1.0
LDFLAGS = -s -w -X main.version=$(VERSION)
BIN = bin/ostree-image

build:
	$(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $(BIN) .

.PHONY: build
