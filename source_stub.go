package main

import (
	"context"

	"github.com/containers/image/v5/types"
	"github.com/pkg/errors"
)

func (r ostreeReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return nil, errors.New("x")
}

func (r ostreeReference) DeleteImage(context.Context, *types.SystemContext) error {
	return errors.New("x")
}
