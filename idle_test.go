package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"ostree-image/internal/errdefs"
	"ostree-image/internal/ostree"
	"ostree-image/internal/testutil"
)

// lyingRegistry serves one image, whose layer is good, as how says.
func lyingRegistry(t *testing.T, how string) (name string, sent func() int64) {
	t.Helper()
	layer := bytes.Repeat([]byte{0}, 20<<10) // an empty archive
	config := []byte(fmt.Sprintf(`{"architecture":%q,"os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, runtime.GOARCH, digest.FromBytes(layer)))
	manifest := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageConfig, digest.FromBytes(config), len(config),
		imgspecv1.MediaTypeImageLayer, digest.FromBytes(layer), len(layer)))
	var bytesSent atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hang := func() { <-r.Context().Done() }
		flush := func() { _ = http.NewResponseController(w).Flush() }
		switch path := r.URL.Path; {
		case path == "/v2/":
		case strings.HasPrefix(path, "/v2/x/manifests/"):
			if how == "hangs before the manifest" {
				hang()
				return
			}
			w.Header().Set("Content-Type", imgspecv1.MediaTypeImageManifest)
			_, _ = w.Write(manifest)
		case strings.HasSuffix(path, digest.FromBytes(config).String()):
			if how == "hangs in the config" {
				w.Header().Set("Content-Length", fmt.Sprint(len(config)))
				_, _ = w.Write(config[:10])
				flush()
				hang()
				return
			}
			_, _ = w.Write(config)
		case strings.HasSuffix(path, digest.FromBytes(layer).String()):
			switch how {
			case "hangs before the layer":
				hang()
			case "hangs in the layer":
				flush()
				_, _ = w.Write(layer[:1000])
				flush()
				hang()
			case "slow":
				for i := range 20 {
					_, _ = w.Write(layer[i<<10 : (i+1)<<10])
					flush()
					time.Sleep(200 * time.Millisecond)
				}
			case "endless":
				flush() // so it names no length
				for r.Context().Err() == nil && bytesSent.Load() < 1<<30 {
					n, _ := w.Write(layer)
					bytesSent.Add(int64(n))
				}
			default:
				flush()
				_, _ = w.Write(layer)
			}
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return "docker://" + strings.TrimPrefix(server.URL, "http://") + "/x:1", func() int64 { return bytesSent.Load() }
}

// TestIdleRegistry: a registry that sends nothing more, or more than the manifest names, ends the
// copy, and nothing is left.
func TestIdleRegistry(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	for _, tt := range []struct {
		how    string
		want   int
		wanted string // a part of what it says
	}{
		{"well", errdefs.StatusDone, ""},
		{"slow", errdefs.StatusDone, ""}, // in all longer than the limit
		{"hangs before the manifest", errdefs.StatusFailed, "has sent nothing for 2s, the limit of --idle-timeout"},
		{"hangs in the config", errdefs.StatusFailed, "has sent nothing for 2s, the limit of --idle-timeout"},
		{"hangs before the layer", errdefs.StatusFailed, "has sent nothing for 2s, the limit of --idle-timeout"},
		{"hangs in the layer", errdefs.StatusFailed, "has sent nothing for 2s, the limit of --idle-timeout"},
		{"endless", errdefs.StatusCheck, "is larger than the 20480 bytes that its manifest names"},
	} {
		t.Run(tt.how, func(t *testing.T) {
			t.Parallel()
			run := newTestRun(t, testOptions{mode: ostree.BareUserOnly})
			name, sent := lyingRegistry(t, tt.how)
			var said bytes.Buffer
			status := runProgram(t, []string{
				"--insecure-policy", "--repo=" + run.repo.path, "pull", "--no-fsync", "--src-tls-verify=false", "--idle-timeout=" + limit.String(), name, "x",
			}, &said, &said)
			if status != tt.want || !strings.Contains(said.String(), tt.wanted) {
				t.Errorf("status %d instead of %d, and it says: %s", status, tt.want, said.String())
			}
			if n := sent(); n > 64<<20 {
				t.Errorf("it took %d bytes", n)
			}
			testutil.OnlyEntries(t, filepath.Join(run.repo.path, "tmp"), "cache")
		})
	}
}
